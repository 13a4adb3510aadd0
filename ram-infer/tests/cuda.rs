//! The kernels for CUDA, compiled as they are when a model is loaded: by NVRTC to PTX, and that by `ptxas` to the code
//! of a GPU. Nothing is run: that takes a GPU. Their numbers are tested on a processor (`msl.rs`).
//!
//! `RAM_TEST_CUDA` names a folder of CUDA's, with `bin/ptxas` and NVRTC in `lib` or `lib64`; without it the tests say
//! that they are skipped. With `RAM_TEST_CUDA_ALL` each format is compiled with all types of scales and inputs, which
//! takes many minutes.

#![expect(clippy::unwrap_used, reason = "tests stop where something is wrong")]

#[path = "../src/cuda/source.rs"]
mod cuda;
#[path = "../src/packed/source.rs"]
#[expect(dead_code, reason = "nothing is run")]
mod source;

/// Where the sources that are under test expect it.
mod packed {
    pub(crate) use crate::source;
}

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use self::source::{FEW_TOKENS_MAX, Float, Launch, Order, Packing, Set};

/// CUDA's compilers.
struct Toolkit {
    /// The program that hands sources to NVRTC.
    compile: PathBuf,
    nvrtc: PathBuf,
    ptxas: PathBuf,
    folder: tempfile::TempDir,
}

impl Toolkit {
    /// That of the environment, unless there is none.
    fn find() -> Option<Self> {
        let Some(root) = std::env::var_os("RAM_TEST_CUDA").map(PathBuf::from) else {
            // Past the capture of the test runner: nobody is to think that this was tested.
            let told = "\nCUDA KERNELS NOT COMPILED: that takes CUDA's compilers (RAM_TEST_CUDA)\n\n";
            std::io::stderr().write_all(told.as_bytes()).unwrap();
            return None;
        };
        let libraries = ["lib", "lib64"].into_iter().filter_map(|lib| root.join(lib).read_dir().ok());
        let mut files = libraries.flatten().map(|file| file.unwrap().path());
        let nvrtc = files.find(|file| file.to_string_lossy().contains("/libnvrtc.so")).unwrap();
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let compile = folder.path().join("compile");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/compile.c");
        let built = Command::new("cc").arg(source).arg("-o").arg(&compile).arg("-ldl").status().unwrap();
        assert!(built.success());
        Some(Self { compile, nvrtc, ptxas: root.join("bin/ptxas"), folder })
    }

    /// What NVRTC makes of a source: PTX.
    ///
    /// # Errors
    /// What it says when it refuses the source, or warns.
    fn ptx(&self, source: &str) -> Result<String, String> {
        let mut command = Command::new(&self.compile);
        command.arg(&self.nvrtc).args(cuda::OPTIONS);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        child.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        if output.status.success() && said.trim().is_empty() {
            Ok(String::from_utf8(output.stdout).unwrap())
        } else {
            Err(said)
        }
    }

    /// What `ptxas` says of each kernel that it compiles for a GPU.
    fn assembled(&self, ptx: &str) -> String {
        let file = self.folder.path().join("kernels.ptx");
        std::fs::write(&file, ptx).unwrap();
        let mut command = Command::new(&self.ptxas);
        command.args(["-v", "-arch=sm_80", "-o"]).arg(self.folder.path().join("kernels.cubin")).arg(file);
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}");
        said
    }
}

/// Every format: over inputs as the engine has them and scales of a type each in turn, or with all types.
fn formats(all_types: bool) -> Vec<(Packing, Float)> {
    let widths = [2, 3, 4, 5, 6, 8].into_iter().flat_map(|bits| [32, 64, 128].map(|size| (bits, size)));
    let affine = widths.enumerate().flat_map(|(i, (bits, group_size))| {
        let types = if all_types { FLOATS.to_vec() } else { vec![FLOATS[i % 3]] };
        types.into_iter().map(move |scales| Packing::Affine { bits, group_size, scales })
    });
    let packings = affine.chain([USUAL, Packing::Mxfp4, Packing::Nvfp4, Packing::Mxfp8]);
    let inputs = if all_types { FLOATS.to_vec() } else { vec![Float::Bf16] };
    packings.flat_map(|packing| inputs.iter().map(move |&inputs| (packing, inputs))).collect()
}

#[test]
fn every_format_compiles_and_keeps_its_arrays_in_registers() {
    let Some(toolkit) = Toolkit::find() else { return };
    for (packing, inputs) in formats(std::env::var_os("RAM_TEST_CUDA_ALL").is_some()) {
        let products = [1, 2, 4, FEW_TOKENS_MAX].map(|tokens| cuda::product(packing, inputs, 64, tokens));
        let rows = cuda::take_rows(packing, inputs, 1024, 1);
        let matrix = products.into_iter().chain([rows]).collect();
        let stack = [Order::Any, Order::Runs].map(|order| cuda::gather(packing, inputs, 64, 1, order)).into();
        for (set, launches) in [(Set::Matrix, matrix), (Set::Stack, stack)] {
            compiles(&toolkit, packing, inputs, set, launches);
        }
    }
}

/// Compiles a set of kernels, which must be those of these launches.
fn compiles(toolkit: &Toolkit, packing: Packing, inputs: Float, set: Set, launches: Vec<Launch>) {
    let label = packing.label(inputs);
    let ptx = toolkit.ptx(&cuda::source(packing, inputs, set));
    let said = toolkit.assembled(&ptx.unwrap_or_else(|said| panic!("{label}: {said}")));
    let kernels: Vec<String> = launches.into_iter().map(|launch| launch.kernel).collect();
    for kernel in &kernels {
        assert!(said.contains(&format!("'{kernel}'")), "{kernel} is not there: {said}");
    }
    let spilled: Vec<usize> = said.lines().filter_map(spilled).collect();
    assert_eq!(spilled.len(), kernels.len(), "{said}");
    let bound = if usual(packing, inputs) { 0 } else { SPILLED_BYTES_MAX };
    assert!(spilled.iter().all(|&bytes| bytes <= bound), "{label}: {said}");
}

/// Bytes that a kernel writes to memory for want of registers, where a line tells of them.
fn spilled(line: &str) -> Option<usize> {
    let (before, _) = line.split_once(" bytes spill stores")?;
    before.rsplit(' ').next()?.parse().ok()
}

/// Whether checkpoints are often packed so, and the engine has such inputs: codes of 4 or 8 bits, scales of 16.
fn usual(packing: Packing, inputs: Float) -> bool {
    let wide = matches!(packing, Packing::Affine { scales: Float::F32, .. });
    matches!(packing.bits(), 4 | 8) && !wide && inputs == Float::Bf16
}

#[test]
fn what_is_not_cuda_is_refused() {
    let Some(toolkit) = Toolkit::find() else { return };
    let (right, wrong) = ("simd_sum(sums[t][r])", "simd_total(sums[t][r])");
    let source = cuda::source(USUAL, Float::Bf16, Set::Matrix);
    assert!(source.contains(right));
    assert!(toolkit.ptx(&source.replacen(right, wrong, 1)).unwrap_err().contains("simd_total"));
}

/// For other formats `ptxas` now and then prefers more threads to a few registers; an array would take more.
const SPILLED_BYTES_MAX: usize = 64;
const FLOATS: [Float; 3] = [Float::F32, Float::F16, Float::Bf16];
/// What most checkpoints have.
const USUAL: Packing = Packing::Affine { bits: 4, group_size: 64, scales: Float::Bf16 };
