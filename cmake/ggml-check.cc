// Compiled at configure time only: names what the tests of compute/kernels ask of ggml, whose formats they are held to, so that
// an older or newer ggml is refused by what it lacks and not by its version number.
#include <ggml.h>

int main() {
  const ggml_type_traits* traits = ggml_get_type_traits(GGML_TYPE_Q4_0);
  return traits->to_float != nullptr && traits->blck_size > 0 && traits->type_size > 0 && traits->type_name ? 0 : 1;
}
