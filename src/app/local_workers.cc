#include "app/local_workers.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>

#include "base/clock.h"
#include "base/log.h"
#include "core/reasons.h"

namespace shoal {

LocalWorkers::~LocalWorkers() {
  const Deadline patience = Deadline::After(std::chrono::seconds(2));
  for (pid_t pid : pids_) {
    int status = 0;
    pid_t ended = 0;
    while ((ended = waitpid(pid, &status, WNOHANG)) == 0 && !patience.passed()) usleep(2000);
    if (ended == 0) {
      kill(pid, SIGKILL);
      waitpid(pid, &status, 0);
    }
  }
}

Status LocalWorkers::Start(int count, uint16_t port, const std::string& token, int threads) {
  const std::string join = "127.0.0.1:" + std::to_string(port);
  const std::string thread_count = std::to_string(threads);
  const std::string secret = "SHOAL_TOKEN=" + token;
  const pid_t parent = getpid();
  for (int i = 0; i < count; ++i) {
    const std::string name = "local-" + std::to_string(i);
    // All that allocates happens before fork: the child of a process with threads may only call async-signal-safe functions.
    std::vector<const char*> arguments = {
        "shoal", "worker", "--join", join.c_str(), "--threads", thread_count.c_str(), "--name", name.c_str(), nullptr};
    std::vector<const char*> environment;
    for (char** entry = environ; *entry != nullptr; ++entry)
      if (const std::string_view line = *entry;
          !line.starts_with("SHOAL_") || line.starts_with("SHOAL_LOG=") || line.starts_with("SHOAL_KERNEL="))
        environment.push_back(*entry);
    environment.push_back(secret.c_str());
    environment.push_back(nullptr);
    const pid_t pid = fork();
    if (pid < 0)
      return Fail(Code::kResourceExhausted, reasons::kIo, "cannot start a worker process", std::strerror(errno));
    if (pid == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != parent) _exit(1);
      sigset_t none;
      sigemptyset(&none);
      sigprocmask(SIG_SETMASK, &none, nullptr);  // the head blocks the signals that it waits for
      setpgid(0, 0);                             // a Ctrl-C is the head's business: it drains, then closes the links
      execve("/proc/self/exe", const_cast<char**>(arguments.data()), const_cast<char**>(environment.data()));
      _exit(127);
    }
    pids_.push_back(pid);
  }
  return {};
}

bool LocalWorkers::AllAlive() {
  bool alive = true;
  for (size_t i = 0; i < pids_.size();) {
    int status = 0;
    if (waitpid(pids_[i], &status, WNOHANG) == pids_[i]) {
      if (WIFSIGNALED(status))
        Log().error("worker process {} was ended by signal {}", pids_[i], WTERMSIG(status));
      else
        Log().error("worker process {} ended with exit code {}", pids_[i], WEXITSTATUS(status));
      pids_.erase(pids_.begin() + static_cast<long>(i));
      alive = false;
    } else {
      ++i;
    }
  }
  return alive;
}

}  // namespace shoal
