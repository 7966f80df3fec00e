// Prints the best of the instruction sets that it is given and this processor has; CMake runs it.
#include <cstdio>

#include "cpu.h"

int main(int count, char** names) {
  for (int i = 1; i < count; ++i)
    if (xent::has_isa(names[i])) return std::puts(names[i]) < 0;
  return 1;
}
