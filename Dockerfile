# Two stages from one package list (debian-packages.txt, by way of ./dev): build, then a small image with the libraries that
# the program is linked with, which runs as an ordinary user.
FROM debian:trixie AS build
COPY debian-packages.txt dev /src/
WORKDIR /src
RUN CI=1 ./dev exec true && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN ./dev build && ldd build/release/shoal | awk '/=> \//{print $3}' | xargs readlink -f | xargs dpkg -S | cut -d: -f1 | sort -u > /runtime-packages

FROM debian:trixie-slim
COPY --from=build /runtime-packages /runtime-packages
COPY --from=build /etc/apt/sources.list.d /etc/apt/sources.list.d
RUN apt-get -o Acquire::Check-Valid-Until=false update \
 && xargs apt-get -o Acquire::Check-Valid-Until=false install -y --no-install-recommends < /runtime-packages \
 && rm -rf /var/lib/apt/lists/* && useradd --create-home shoal
COPY --from=build /src/build/release/shoal /usr/local/bin/shoal
USER shoal
EXPOSE 7462
ENTRYPOINT ["shoal"]
CMD ["--help"]
