// What: the command line: flags, environment and configuration file in, a command called, an exit code out.
// Fails: exit codes of app/exit_codes.h; usage errors say what is wrong on stderr.
#pragma once

namespace shoal {
int Main(int argc, char** argv);
}
