//! What machine this is, as far as the network wants to know it.

use std::process::Command;

use ram_core::provider::{Hardware, Thermal};
use ram_core::units::Bytes;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use crate::ProviderError;

/// Longest chip name that is told, in characters: longer than any that a vendor sells under.
const CHIP_CHARS_MAX: usize = 96;

/// Asks the operating system.
///
/// # Errors
/// [`ProviderError::Hardware`] when it does not answer.
pub fn probe() -> Result<Hardware, ProviderError> {
    let wanted = RefreshKind::nothing()
        .with_memory(MemoryRefreshKind::nothing().with_ram())
        .with_cpu(CpuRefreshKind::nothing());
    let system = System::new_with_specifics(wanted).map_err(|_| ProviderError::Hardware)?;
    let os = std::env::consts::OS;
    let memory = Bytes::new(system.total_memory());
    let usable_memory = match os {
        "macos" => metal_working_set(memory, wired_limit_mib()),
        _ => system.cgroup_limits().map_or(memory, |group| memory.min(Bytes::new(group.total_memory))),
    };
    Ok(Hardware {
        chip: chip_name(system.cpus().first().map_or("", |cpu| cpu.brand())),
        os: os.to_owned(),
        memory,
        usable_memory,
        cpus: std::thread::available_parallelism().map_or(1, |n| u16::try_from(n.get()).unwrap_or(u16::MAX)),
    })
}

/// What Metal calls `recommendedMaxWorkingSetSize`, without asking Metal: two thirds of the memory up to 32 GiB, three
/// quarters above (8, 16, 32 GiB give 5.3, 10.7, 21.3; 36, 64, 128 GiB give 27, 48, 96), or the limit that the
/// operator set with `sysctl iogpu.wired_limit_mb`.
fn metal_working_set(memory: Bytes, wired_limit_mib: u64) -> Bytes {
    if wired_limit_mib > 0 {
        return memory.min(Bytes::from_mib(wired_limit_mib));
    }
    let (num, den) = if memory <= Bytes::from_gib(32) { (2, 3) } else { (3, 4) };
    Bytes::new(memory.get() / den * num)
}

/// The operator's own limit on a Mac, in MiB; 0, its default, is none.
fn wired_limit_mib() -> u64 {
    let output = Command::new("/usr/sbin/sysctl").args(["-n", "iogpu.wired_limit_mb"]).output();
    output.ok().and_then(|output| String::from_utf8(output.stdout).ok()?.trim().parse().ok()).unwrap_or(0)
}

/// Whether [`thermal`] knows more than the default.
pub(crate) const TELLS_HEAT: bool = cfg!(target_os = "macos");

/// How hot the machine is, as macOS tells all its programs; [`Thermal::Nominal`] where no system tells it. Starts a
/// process: not for an async task.
pub(crate) fn thermal() -> Thermal {
    if !TELLS_HEAT {
        return Thermal::Nominal;
    }
    let output = Command::new("/usr/bin/notifyutil").args(["-g", THERMAL_KEY]).output();
    let told = output.ok().and_then(|output| String::from_utf8(output.stdout).ok());
    told.as_deref().map_or(Thermal::Nominal, thermal_of)
}

/// The notification that macOS's `thermald` posts, with its pressure level as the state.
const THERMAL_KEY: &str = "com.apple.system.thermalpressurelevel";

/// Reads `KEY LEVEL`: 0 nominal, 1 moderate, 2 heavy, 3 trapping, 4 sleeping (`OSThermalNotification.h`).
fn thermal_of(told: &str) -> Thermal {
    match told.split_whitespace().last() {
        Some("1") => Thermal::Fair,
        Some("2") => Thermal::Serious,
        Some("3" | "4") => Thermal::Critical,
        _ => Thermal::Nominal,
    }
}

fn chip_name(brand: &str) -> String {
    let printable: String = brand.trim().chars().filter(|c| !c.is_control()).take(CHIP_CHARS_MAX).collect();
    if printable.is_empty() { std::env::consts::ARCH.to_owned() } else { printable }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_memory_and_a_name() {
        let hardware = probe().unwrap();
        assert!(Bytes::ZERO < hardware.usable_memory && hardware.usable_memory <= hardware.memory);
        assert!(hardware.cpus > 0 && !hardware.chip.is_empty() && !hardware.os.is_empty());
    }

    #[test]
    fn heat_is_read_as_macos_tells_it() {
        let check =
            |level: &str, expected| assert_eq!(thermal_of(&format!("{THERMAL_KEY} {level}\n")), expected);
        check("0", Thermal::Nominal);
        check("1", Thermal::Fair);
        check("2", Thermal::Serious);
        check("4", Thermal::Critical);
        check("no such key", Thermal::Nominal);
        assert_eq!(thermal_of(""), Thermal::Nominal);
    }

    #[test]
    fn a_mac_keeps_a_part_of_its_memory_from_models() {
        let check = |gib, limit_mib, expected_mib| {
            let usable = metal_working_set(Bytes::from_gib(gib), limit_mib);
            assert_eq!(usable.get() >> 20, expected_mib, "{gib} GiB");
        };
        check(8, 0, 5461);
        check(16, 0, 10922);
        check(36, 0, 27648);
        check(64, 0, 49152);
        check(64, 57_344, 57_344);
        check(64, 999_999, 65_536);
    }
}
