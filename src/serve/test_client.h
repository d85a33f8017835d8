// What: for tests: an HTTP client on a plain socket that can also say what no proper client would. Header only.
// Threads: a client belongs to one; calls block.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "serve/http.h"

namespace shoal::serve {

struct ClientResponse {
  int status = 0;
  std::map<std::string, std::string> headers;
  std::string body;
  bool complete = false;  // its framing says it is whole
  nlohmann::json json() const { return nlohmann::json::parse(body); }
  std::string code() const { return json()["error"]["code"]; }
};

class TestClient {
 public:
  explicit TestClient(uint16_t port, int receive_buffer = 0) {
    fd_ = ::socket(AF_INET, SOCK_STREAM, 0);
    if (receive_buffer > 0) ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    const timeval patience{20, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    ::setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  }
  ~TestClient() { Close(); }
  TestClient(const TestClient&) = delete;
  TestClient& operator=(const TestClient&) = delete;

  bool connected() const { return connected_; }
  void Close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  void Reset() {
    const linger now{1, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    Close();
  }
  void FinishSending() { ::shutdown(fd_, SHUT_WR); }

  bool Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }

  static std::string Get(std::string_view path, std::string_view headers = {}) {
    return "GET " + std::string(path) + " HTTP/1.1\r\nHost: localhost\r\n" + std::string(headers) + "\r\n";
  }
  static std::string Post(std::string_view path, std::string_view body, std::string_view headers = {}) {
    return "POST " + std::string(path) +
           " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: " +
           std::to_string(body.size()) + "\r\n" + std::string(headers) + "\r\n" + std::string(body);
  }

  // One response; status 0 when the connection ended first.
  ClientResponse Read(bool head_only = false) {
    ClientResponse response = ReadHead();
    if (response.status == 0 || head_only) return response;
    if (response.headers.contains("transfer-encoding")) {
      while (auto chunk = ReadChunk()) {
        if (chunk->empty()) {
          response.complete = true;
          break;
        }
        response.body += *chunk;
      }
    } else if (response.headers.contains("content-length")) {
      const size_t size = std::stoul(response.headers["content-length"]);
      while (buffer_.size() < size && Fill()) {
      }
      response.complete = buffer_.size() >= size;
      response.body = buffer_.substr(0, size);
      buffer_.erase(0, response.body.size());
    } else {
      while (Fill()) {
      }
      response.body = std::exchange(buffer_, {});
      response.complete = true;
    }
    return response;
  }

  ClientResponse ReadHead() {
    ClientResponse response;
    size_t end;
    while ((end = buffer_.find("\r\n\r\n")) == std::string::npos)
      if (!Fill()) return response;
    const std::string head = buffer_.substr(0, end + 2);
    buffer_.erase(0, end + 4);
    response.status = std::stoi(head.substr(9, 3));
    for (size_t at = head.find("\r\n") + 2; at < head.size();) {
      const size_t stop = head.find("\r\n", at), colon = head.find(':', at);
      response.headers[Lower(head.substr(at, colon - at))] = head.substr(colon + 2, stop - colon - 2);
      at = stop + 2;
    }
    return response;
  }

  // Nothing: the connection ended. Empty: the last chunk.
  std::optional<std::string> ReadChunk() {
    size_t line;
    while ((line = buffer_.find("\r\n")) == std::string::npos)
      if (!Fill()) return std::nullopt;
    const size_t size = std::stoul(buffer_.substr(0, line), nullptr, 16);
    while (buffer_.size() < line + 2 + size + 2)
      if (!Fill()) return std::nullopt;
    std::string chunk = buffer_.substr(line + 2, size);
    buffer_.erase(0, line + 2 + size + 2);
    return chunk;
  }

  // Takes at most `count` bytes off the connection and forgets them; how many came, 0 or less at its end.
  ssize_t ReadSome(size_t count) {
    std::string bytes(count, '\0');
    return ::recv(fd_, bytes.data(), count, 0);
  }

  // True when the server has closed (or reset) the connection and nothing is left to read.
  bool AtEnd() { return buffer_.empty() && !Fill(); }

 private:
  bool Fill() {
    char bytes[16384];
    const ssize_t count = ::recv(fd_, bytes, sizeof(bytes), 0);
    if (count <= 0) return false;
    buffer_.append(bytes, static_cast<size_t>(count));
    return true;
  }
  int fd_ = -1;
  bool connected_ = false;
  std::string buffer_;
};

// The events of a stream: the JSON of each, and whether [DONE] came last.
struct Events {
  std::vector<nlohmann::json> list;
  bool done = false;
  std::map<int, std::string> text;           // of each choice
  std::map<int, std::string> finish_reason;  // of each choice
};

inline Events ParseEvents(std::string_view body) {
  Events events;
  while (!body.empty()) {
    const size_t end = body.find("\n\n");
    if (end == std::string_view::npos) {
      ADD_FAILURE() << "half an event: " << body;
      break;
    }
    const std::string_view event = body.substr(0, end);
    body.remove_prefix(end + 2);
    if (event.starts_with(":")) continue;
    EXPECT_TRUE(event.starts_with("data: ")) << event;
    EXPECT_FALSE(events.done) << "after [DONE]: " << event;
    if (event == "data: [DONE]") {
      events.done = true;
      continue;
    }
    events.list.push_back(nlohmann::json::parse(event.substr(6)));
    const auto& json = events.list.back();
    if (!json.contains("choices")) continue;
    for (const auto& choice : json["choices"]) {
      const int index = choice["index"];
      EXPECT_FALSE(events.finish_reason.contains(index)) << "text after the end of choice " << index;
      events.text[index] += choice["text"].get<std::string>();
      if (!choice["finish_reason"].is_null()) events.finish_reason[index] = choice["finish_reason"];
    }
  }
  return events;
}

}  // namespace shoal::serve
