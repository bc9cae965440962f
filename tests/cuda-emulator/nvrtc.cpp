// libnvrtc by g++: rewrites what no header can say, and compiles it to a
// shared library.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <string>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

namespace {

enum { SUCCESS = 0, INVALID_INPUT = 3, COMPILATION = 6 };

struct Program {
  std::string name, source, log, code;
  std::map<std::string, std::string> headers;
};

std::string readFile(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
void writeFile(const std::string &path, const std::string &text) {
  std::ofstream(path, std::ios::binary) << text;
}

/** Where this library lies, and beside it libcuda and the headers. */
std::string ownFolder() {
  Dl_info info;
  dladdr((void *)ownFolder, &info);
  std::string path = info.dli_fname;
  return path.substr(0, path.rfind('/'));
}

const std::regex dynamicShared(
    R"(extern\s+__shared__\s+(?:__align__\((\d+)\)\s+)?(\w+)\s+(\w+)\s*\[\s*\]\s*;)");

/** Static shared memory is a static: blocks run one behind the other. */
std::string rewrite(const std::string &text) {
  std::string shared = std::regex_replace(text, dynamicShared,
      "$2 *const $3 = ($2 *)asaLaunch.shared;");
  shared = std::regex_replace(shared, std::regex(R"(\b__shared__\b)"), "static");
  return std::regex_replace(shared, std::regex(R"(\b__global__\b)"), "");
}

int alignmentOf(const std::string &text) {
  int alignment = 16;
  for (std::sregex_iterator at(text.begin(), text.end(), dynamicShared), end; at != end; ++at) {
    if ((*at)[1].matched) alignment = std::max(alignment, std::stoi((*at)[1]));
  }
  return alignment;
}

/** `extern "C" __global__ void __cluster_dims__(BLOCKS) __launch_bounds__(THREADS) name(` */
std::string entries(const std::string &text) {
  static const std::regex kernel(
      R"re(extern\s+"C"\s+__global__\s+void\s+(?:__cluster_dims__\(([^)]*)\)\s*)?)re"
      R"re((?:__launch_bounds__\(([^)]*)\)\s*)?(\w+)\s*\()re");
  std::string all;
  for (std::sregex_iterator at(text.begin(), text.end(), kernel), end; at != end; ++at) {
    std::string cluster = (*at)[1].matched ? (*at)[1].str() : "1";
    std::string bounds = (*at)[2].matched ? (*at)[2].str() : "0";
    all += "ASA_ENTRY(" + (*at)[3].str() + ", (" + bounds.substr(0, bounds.find(',')) +
           "), (" + cluster + "))\n";
  }
  return all;
}

/** A text for g++; kept, as most kernels share theirs. */
struct Rewritten {
  std::string text, entries;
  int alignment;
};
const Rewritten &rewritten(const std::string &text) {
  static std::map<std::string, Rewritten> known;
  auto found = known.find(text);
  if (found == known.end()) {
    Rewritten made = {rewrite(text), entries(text), alignmentOf(text)};
    found = known.emplace(text, std::move(made)).first;
  }
  return found->second;
}

/** Fused multiplication and addition, as the real compiler makes of them. */
std::string fused() {
#ifdef __x86_64__
  return __builtin_cpu_supports("fma") ? " -mfma" : "";
#else
  return "";
#endif
}

/**
 * No start files and no names that libraries share: what is not initialised is
 * shared memory, and nothing else.
 */
const char *const FLAGS =
    " -O1 -fPIC -shared -nostdinc++ -nostartfiles -nodefaultlibs"
    " -fvisibility=hidden -fno-gnu-unique -fno-exceptions -fno-rtti"
    " -fno-stack-protector -fcf-protection=none"
    // As loose as the real compiler is.
    " -fno-strict-aliasing -fno-math-errno -fno-trapping-math"
    " -fsanitize=alignment,bounds"
    " -Wno-unknown-pragmas -Wno-attributes -Werror=return-type";

std::string quoted(const std::string &text) { return "'" + text + "'"; }

/** `-DT=f16` stands behind the emulator's header, which has names of its own. */
std::string definitionOf(std::string option) {
  option = option.substr(2);
  size_t at = option.find('=');
  if (at != std::string::npos) option[at] = ' ';
  else option += " 1";
  return "#define " + option + "\n";
}

/**
 * The real compiler takes a function that does not say where it runs, and so
 * every lambda, for the host's, and refuses it, unless an option says otherwise.
 */
bool isHostCode(const std::string &source, const std::vector<std::string> &options) {
  static const std::regex lambda(R"re(\[[&=][^\]]*\]\s*\()re");
  for (const std::string &option : options) {
    if (option == "-default-device" || option == "--device-as-default-execution-space") return false;
  }
  return std::regex_search(source, lambda);
}

int compile(Program &program, const std::vector<std::string> &options) {
  if (isHostCode(program.source, options)) {
    program.log = program.name + ": error: host functions are not allowed in JIT mode";
    return COMPILATION;
  }
  char pattern[] = "/tmp/asa-cuda-emulator-XXXXXX";
  if (!mkdtemp(pattern)) return COMPILATION;
  std::string folder = pattern;
  std::string here = ownFolder();
  std::string definitions, standard = "-std=c++17";
  for (const std::string &option : options) {
    if (option.rfind("-D", 0) == 0) definitions += definitionOf(option);
    else if (option.rfind("--std=", 0) == 0) standard = option.substr(1);
    else if (option.rfind("-std=", 0) == 0) standard = option;
  }
  const Rewritten &source = rewritten(program.source);
  int alignment = source.alignment;
  std::string kernels = source.entries;
  for (const auto &[name, text] : program.headers) {
    const Rewritten &header = rewritten(text);
    alignment = std::max(alignment, header.alignment);
    kernels += header.entries;
    // The emulator has those instructions itself.
    bool isPtx = name == "ptx.cuh" || name == "hopper-ptx.cuh";
    writeFile(folder + "/" + name, isPtx ? "" : header.text);
  }
  writeFile(folder + "/kernel.cpp", definitions + "#line 1 \"" + program.name + "\"\n" +
            source.text + "\nASA_MODULE(" + std::to_string(alignment) + ")\n" + kernels);
  std::string command = "cd " + folder + " && " CXX " " + quoted(standard) + FLAGS +
      fused() + " -I. -include " + quoted(here + "/cuda-emulation.h") +
      " -o kernel.so kernel.cpp " + quoted(here + "/libcuda.so.1") +
      " -lm -lc -lgcc 2> log";
  int status = std::system(command.c_str());
  program.log = readFile(folder + "/log");
  if (status == 0) program.code = readFile(folder + "/kernel.so");
  std::system(("rm -rf " + folder).c_str());
  return status == 0 ? SUCCESS : COMPILATION;
}

} // namespace

extern "C" {

/** The minor version is the emulator's: caches keep its code apart. */
int nvrtcVersion(int *major, int *minor) {
  *major = 13;
  *minor = EMULATOR_VERSION;
  return SUCCESS;
}

int nvrtcCreateProgram(Program **out, const char *source, const char *name,
                       int count, const char *const *texts, const char *const *names) {
  *out = new Program{name, source, "", "", {}};
  for (int n = 0; n < count; n++) (*out)->headers[names[n]] = texts[n];
  return SUCCESS;
}
int nvrtcDestroyProgram(Program **program) {
  delete *program;
  *program = nullptr;
  return SUCCESS;
}
int nvrtcCompileProgram(Program *program, int count, const char *const *options) {
  return compile(*program, {options, options + count});
}

int nvrtcGetProgramLogSize(Program *program, size_t *size) {
  *size = program->log.size() + 1;
  return SUCCESS;
}
int nvrtcGetProgramLog(Program *program, char *log) {
  memcpy(log, program->log.c_str(), program->log.size() + 1);
  return SUCCESS;
}
int nvrtcGetCUBINSize(Program *program, size_t *size) {
  *size = program->code.size();
  return SUCCESS;
}
int nvrtcGetCUBIN(Program *program, char *code) {
  memcpy(code, program->code.data(), program->code.size());
  return SUCCESS;
}

} // extern "C"
