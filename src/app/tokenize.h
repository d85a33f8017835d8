// What: `shoal tokenize`: text on stdin becomes ids on stdout, or with --decode the other way round.
// Limits: 64 MiB of stdin.
// Fails: exit code 2 for ids that are no ids, 4 when the model or its tokenizer cannot be used.
#pragma once

#include <filesystem>

namespace shoal {

// Without `no_special`: BOS and EOS as the file says, and control tokens written in the text become those tokens.
// With it neither. Ids are separated by one space and end in a newline. `decode`: ids, divided by white space or commas,
// give their text, exactly (control tokens give nothing). A file with nothing but a vocabulary will do.
int TokenizeCommand(const std::filesystem::path& model, bool no_special, bool decode);

}  // namespace shoal
