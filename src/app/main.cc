#include "app/cli.h"

int main(int argc, char** argv) { return shoal::Main(argc, argv); }
