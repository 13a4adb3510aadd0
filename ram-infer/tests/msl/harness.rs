//! Kernels compiled for this processor, in a program that runs them launch by launch; `harness.cpp` says how it is
//! spoken to.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::source::Launch;

/// What watches the kernels while they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Watch {
    /// Nothing.
    None,
    /// The address and the undefined-behaviour sanitizer.
    Addresses,
    /// The thread sanitizer, to which each thread of a threadgroup is a thread.
    Threads,
}

/// A running program of kernels.
pub(crate) struct Harness {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Harness {
    /// Compiles sources, each a file of its own, and starts the program; `None` without the compiler.
    ///
    /// What was compiled before is kept, by a hash of all that went into it.
    pub(crate) fn start(sources: &[String], watch: Watch) -> Option<Self> {
        let compiler = compiler()?;
        let mut hasher = DefaultHasher::new();
        (sources, watch, SHIM, HARNESS, FLAGS, KERNEL_FLAGS, &compiler).hash(&mut hasher);
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("msl-{:016x}", hasher.finish()));
        let program = dir.join("harness");
        if !program.exists() {
            build(&compiler, &dir, sources, watch);
        }
        let mut child = Command::new(program)
            .env("ASAN_OPTIONS", "detect_leaks=0")
            .env("TSAN_OPTIONS", "halt_on_error=1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (requests, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Some(Self { child, requests, answers: BufReader::new(answers) })
    }

    /// Runs a kernel over buffers; the content of buffer `output` afterwards.
    ///
    /// # Errors
    /// What the program said before it stopped; it is of no more use then.
    pub(crate) fn run(
        &mut self,
        launch: &Launch,
        order: u32,
        buffers: &[Vec<u8>],
        output: usize,
    ) -> Result<Vec<u8>, String> {
        let Launch { kernel, groups: [x, y], threads } = launch;
        let lengths: String = buffers.iter().map(|buffer| format!(" {}", buffer.len())).collect();
        let count = buffers.len();
        let mut request =
            format!("{kernel} {x} {y} 1 {threads} {order} {count} {output}{lengths}\n").into_bytes();
        request.extend(buffers.iter().flatten());
        let mut answer = String::new();
        let exchanged = self
            .requests
            .write_all(&request)
            .and_then(|()| self.requests.flush())
            .and_then(|()| self.answers.read_line(&mut answer));
        match (exchanged, answer.as_str()) {
            (Ok(_), "done\n") => {
                let mut content = vec![0; buffers[output].len()];
                self.answers.read_exact(&mut content).unwrap();
                Ok(content)
            }
            (Ok(_), "unknown\n") => Err(format!("no kernel {kernel}")),
            _ => {
                let mut said = String::new();
                match self.child.stderr.take() {
                    Some(mut stderr) => stderr.read_to_string(&mut said).unwrap(),
                    None => return Err("the program stopped at an earlier launch".to_owned()),
                };
                Err(said)
            }
        }
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// What the compiler says of pointers that are passed for pointers to other memory; `None` without the compiler.
pub(crate) fn check_address_spaces(source: &str) -> Option<Result<(), String>> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kernels.metal");
    std::fs::write(&file, source).unwrap();
    let mut check = Command::new(compiler()?);
    check.args(FLAGS).args(KERNEL_FLAGS).args(["-DMSL_CHECK_SPACES", "-fsyntax-only", "-x", "c++"]);
    let output = check.arg("-isystem").arg(folder()).arg(file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Some(if output.status.success() { Ok(()) } else { Err(said) })
}

/// Compiles in a folder of its own, which gets its name when all is there.
fn build(compiler: &Path, dir: &Path, sources: &[String], watch: Watch) {
    let partial = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let sanitizers: &[&str] = match watch {
        Watch::None => &[],
        Watch::Addresses => {
            &["-g1", "-fsanitize=address,alignment,bounds,shift", "-fno-sanitize-recover=all"]
        }
        Watch::Threads => &["-g1", "-fsanitize=thread"],
    };
    let command = || {
        let mut command = Command::new(compiler);
        command.args(FLAGS).args(sanitizers).arg("-isystem").arg(folder()).current_dir(partial.path());
        command
    };
    let kernels = sources.iter().enumerate().map(|(i, source)| {
        std::fs::write(partial.path().join(format!("{i}.metal")), source).unwrap();
        let mut command = command();
        command.args(KERNEL_FLAGS).args(["-x", "c++", "-c"]).arg(format!("{i}.metal"));
        command.args(["-o", &format!("{i}.o")]);
        command
    });
    let mut main = command();
    main.arg("-c").arg(folder().join("harness.cpp")).args(["-o", "harness.o"]);
    let compiling: Vec<Child> = kernels.chain([main]).map(|mut command| command.spawn().unwrap()).collect();
    for mut child in compiling {
        assert!(child.wait().unwrap().success(), "the kernels do not compile");
    }
    let objects = (0..sources.len()).map(|i| format!("{i}.o"));
    let linked = command().args(objects).args(["harness.o", "-o", "harness"]).status().unwrap();
    assert!(linked.success(), "the harness does not link");
    if std::fs::rename(partial.path(), dir).is_err() {
        assert!(dir.join("harness").exists(), "the harness cannot be put in its place");
    }
}

/// Clang 19, or what `RAM_TEST_CLANG` names.
fn compiler() -> Option<PathBuf> {
    let named = std::env::var_os("RAM_TEST_CLANG").map_or_else(|| "clang++-19".into(), PathBuf::from);
    let answers = Command::new(&named).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = cfg!(target_arch = "x86_64") && answers.is_ok_and(|status| status.success());
    if !found {
        // Past the capture of the test runner: nobody is to think that this was tested.
        let told =
            "\nMETAL KERNELS NOT TESTED: that takes clang 19 (`clang++-19`, or RAM_TEST_CLANG) on x86-64\n\n";
        std::io::stderr().write_all(told.as_bytes()).unwrap();
    }
    found.then_some(named)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/msl")
}

const SHIM: &str = include_str!("metal_stdlib");
const HARNESS: &str = include_str!("harness.cpp");
/// Half floats are rounded after each operation and products are not fused with sums, as on no machine by accident.
const FLAGS: [&str; 8] = [
    "-std=c++17",
    "-O1",
    "-march=native",
    "-pthread",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-Xclang",
    "-ffloat16-excess-precision=none",
];
/// As Metal has it: C++14, and numbers like `0.5` are f32. The attributes that are not C++ are known to the shim.
const KERNEL_FLAGS: [&str; 12] = [
    "-Xclang",
    "-fbfloat16-excess-precision=none",
    "-Xclang",
    "-cl-single-precision-constant",
    "-Wall",
    "-Wextra",
    "-Wpre-c++17-compat",
    "-Werror",
    "-Wno-unknown-attributes",
    "-Wno-duplicate-decl-specifier",
    "-Wno-user-defined-literals",
    "-Wno-unused-const-variable",
];
