//! Who may import whom: the table of `docs/ARCHITECTURE.md` against what Cargo says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

/// Dependencies that serve tests and examples alone: the whole network in one process tree.
const DEV_ARROWS: [(&str, &str); 1] = [("ram-coordinator", "ram-provider")];

/// What must not stand anywhere below a crate, however far down.
const FORBIDDEN: [(&str, &[&str]); 7] = [
    ("ram-core", &["tokio", "candle-core", "axum", "hyper", "reqwest", "getrandom"]),
    ("ram-proto", &["tokio", "candle-core", "axum", "hyper", "ram-crypto"]),
    ("ram-chain", &["tokio", "candle-core", "axum", "hyper"]),
    ("ram-crypto", &["tokio", "tracing", "log", "serde"]),
    ("ram-infer", &["tokio", "hyper", "reqwest", "ureq", "rustls", "ram-proto"]),
    ("ram-pipeline", &["tokio", "candle-core", "candle-nn", "ram-infer", "axum", "hyper"]),
    ("ram-coordinator", &["candle-core", "candle-nn", "ram-infer", "ram-provider"]),
];

#[test]
fn the_table_names_every_crate_of_the_workspace() {
    let rows: BTreeSet<String> = table().into_keys().collect();
    let members: BTreeSet<String> = members().into_iter().map(|package| package.name.to_string()).collect();
    assert_eq!(rows, members, "docs/ARCHITECTURE.md, `Who may import whom`, has one row for each member");
}

#[test]
fn no_crate_imports_what_the_table_does_not_allow() {
    let table = table();
    for package in members() {
        let name = package.name.as_str();
        let allowed = &table[name];
        for dependency in package.dependencies.iter().filter(|dependency| is_ours(&dependency.name)) {
            let arrow = (name, dependency.name.as_str());
            let for_tests = dependency.kind == DependencyKind::Development && DEV_ARROWS.contains(&arrow);
            assert!(
                allowed.contains(&dependency.name) || for_tests,
                "{name} imports {}, and docs/ARCHITECTURE.md allows it {allowed:?} alone",
                dependency.name
            );
        }
    }
}

#[test]
fn the_table_allows_no_circle() {
    let mut rest = table();
    while !rest.is_empty() {
        let (leaves, others): (BTreeMap<_, _>, BTreeMap<_, _>) = rest
            .clone()
            .into_iter()
            .partition(|(_, imports)| !imports.iter().any(|name| rest.contains_key(name)));
        assert!(!leaves.is_empty(), "these crates may import each other in a circle: {:?}", rest.keys());
        rest = others;
    }
}

#[test]
fn nothing_forbidden_stands_below_a_crate() {
    let members: BTreeSet<String> = members().into_iter().map(|package| package.name.to_string()).collect();
    for (name, forbidden) in FORBIDDEN.into_iter().filter(|(name, _)| members.contains(*name)) {
        let below = tree(name, "normal,build", "{p}");
        for line in below.lines() {
            let package = line.split_whitespace().next().unwrap_or_default();
            assert!(
                !forbidden.contains(&package),
                "{package} stands below {name}: see `cargo tree -p {name} -i {package}`"
            );
        }
    }
}

/// Without the feature `seal` the coordinator has no code that could open a prompt.
#[test]
fn the_coordinator_cannot_open_a_sealed_prompt() {
    let features = tree("ram-coordinator", "normal,build,features", "{p} {f}");
    for line in features.lines().filter(|line| line.starts_with("ram-crypto")) {
        assert!(!line.contains("seal"), "ram-coordinator enables the feature `seal` of ram-crypto: {line}");
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with("ram-")
}

fn members() -> Vec<Package> {
    let metadata: Metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .other_options(["--offline".to_owned()])
        .exec()
        .expect("cargo metadata reads this workspace");
    metadata.packages
}

/// What stands below a crate, one line each, as Cargo resolves it for this machine.
fn tree(package: &str, edges: &str, format: &str) -> String {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--prefix", "none", "-p", package, "-e", edges, "-f", format])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo tree prints UTF-8")
}

/// The rows `| crate | may import (ours) | must never |` under the heading `Who may import whom`.
fn table() -> BTreeMap<String, BTreeSet<String>> {
    let path = root().join("docs/ARCHITECTURE.md");
    let text = std::fs::read_to_string(&path).expect("docs/ARCHITECTURE.md is there");
    let (_, section) = text.split_once("## Who may import whom").expect("ARCHITECTURE.md has the section");
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    let rows = section.lines().filter(|line| line.starts_with('|')).map(cells).skip(2);
    rows.map(|row: Vec<String>| {
        let name = if is_ours(&row[0]) { row[0].clone() } else { format!("ram-{}", row[0]) };
        // Imports are listed by their short names; what stands in brackets is a remark.
        let listed = row[1].split('(').next().unwrap_or_default();
        let imports = listed.split(',').map(str::trim).filter(|word| !matches!(*word, "" | "none"));
        (name, imports.map(|word| format!("ram-{word}")).collect())
    })
    .collect()
}

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
