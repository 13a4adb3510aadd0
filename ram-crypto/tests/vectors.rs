//! The vectors of the sealed exchange are what another implementation gives: `vectors/e2e.py`, over the package
//! `cryptography` for Python. `RAM_TEST_PYTHON` names a Python that has it; without, `python3` is tried.

#![cfg(feature = "seal")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn another_implementation_gives_the_same() {
    let named = std::env::var_os("RAM_TEST_PYTHON");
    let python = named.clone().unwrap_or_else(|| "python3".into());
    let mut probing = Command::new(&python);
    probing.args(["-c", "import cryptography.hazmat.primitives.hpke"]);
    if !probing.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        assert!(named.is_none(), "RAM_TEST_PYTHON names {python:?}, which has no `cryptography` with HPKE");
        // Not by a macro: of a test that passes nothing is shown that came by one.
        let told = b"SKIPPED: no `cryptography` with HPKE for Python: the vectors were NOT checked by it\n";
        return std::io::stderr().write_all(told).unwrap();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join("e2e.py");
    let output = Command::new(python).arg(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
