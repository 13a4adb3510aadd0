// Runs kernels for a caller in another language, who speaks through standard input and output, a launch at a time:
//
//   KERNEL GX GY GZ THREADS ORDER N OUTPUT LENGTH.. \n  then the bytes of N buffers, buffer i at index i
//   -> "done\n" and the bytes of buffer OUTPUT; or "unknown\n"
//
// GX, GY and GZ count threadgroups of THREADS threads; ORDER is a way for the threads to take turns (see `dispatch`).
// The end of the input ends the program.
#define MSL_HOST
#include "metal_stdlib"

#include <iostream>

struct Launch {
  std::string kernel;
  metal::uint3 groups;
  unsigned threads, order;
  size_t output;
  // Each an allocation of its own and of exact size: the address sanitizer sees a step outside.
  std::vector<std::vector<char>> buffers;
};

static bool read(Launch& launch) {
  unsigned x, y, z;
  size_t count;
  if (!(std::cin >> launch.kernel >> x >> y >> z >> launch.threads >> launch.order >> count >> launch.output)) return false;
  launch.groups = metal::uint3{x, y, z};
  std::vector<size_t> lengths(count);
  for (auto& length : lengths) std::cin >> length;
  std::cin.get();
  for (size_t length : lengths) {
    launch.buffers.emplace_back(length);
    std::cin.read(launch.buffers.back().data(), length);
  }
  return bool(std::cin);
}

int main() {
  std::ios::sync_with_stdio(false);
  for (Launch launch; read(launch); launch = {}) {
    std::vector<void*> bound;
    for (auto& buffer : launch.buffers) bound.push_back(buffer.data());
    if (msl::dispatch(launch.kernel.c_str(), bound, launch.groups, {launch.threads, 1, 1}, launch.order, 1)) {
      const auto& output = launch.buffers[launch.output];
      std::cout << "done\n";
      std::cout.write(output.data(), output.size());
    } else {
      std::cout << "unknown\n";
    }
    std::cout.flush();
  }
}
