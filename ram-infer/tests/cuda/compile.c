// Compiles CUDA by NVRTC, as the engine does: source from the standard input, PTX to the standard output, and what the
// compiler said to the standard error. NVRTC needs no GPU, and its library alone.
//
//   compile LIBRARY [OPTION..]
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct Program* Program;

static void* library;

static void* function(const char* name) {
  void* found = dlsym(library, name);
  if (!found) fprintf(stderr, "%s\n", dlerror()), exit(2);
  return found;
}

// What NVRTC has of one kind, log or PTX: the functions that say how long it is, and what.
static void print(Program program, const char* size_of, const char* read, FILE* to) {
  size_t size = 0;
  ((int (*)(Program, size_t*))function(size_of))(program, &size);
  char* text = calloc(size + 1, 1);
  ((int (*)(Program, char*))function(read))(program, text);
  fputs(text, to);
}

int main(int count, char** arguments) {
  static char source[1 << 20];
  if (count < 2 || fread(source, 1, sizeof source - 1, stdin) == sizeof source - 1) return 2;
  library = dlopen(arguments[1], RTLD_NOW);
  if (!library) return fprintf(stderr, "%s\n", dlerror()), 2;
  Program program = NULL;
  int (*create)(Program*, const char*, const char*, int, const char* const*, const char* const*) =
      function("nvrtcCreateProgram");
  if (create(&program, source, "kernels.cu", 0, NULL, NULL)) return 2;
  int (*compile)(Program, int, char**) = function("nvrtcCompileProgram");
  int failed = compile(program, count - 2, arguments + 2);
  print(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog", stderr);
  if (failed) return 1;
  print(program, "nvrtcGetPTXSize", "nvrtcGetPTX", stdout);
  return 0;
}
