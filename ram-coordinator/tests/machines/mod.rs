//! Machines that are network namespaces, over a wire with delay and loss. Where there are none to be had, it is said
//! aloud.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Namespaces on one wire; the first end of the wire is here, and is the coordinator's.
pub(crate) struct Machines {
    wire: Child,
    names: Vec<String>,
}

impl Machines {
    /// So many machines, with this delay from one to another in milliseconds, and so many packets of a hundred lost.
    ///
    /// # Errors
    /// Why there are none here.
    pub(crate) fn new(count: usize, delay: u32, loss: f32) -> Result<Self, String> {
        let own = std::process::id() % 10_000;
        let names: Vec<String> = (0..count).map(|n| format!("ram{own}x{n}")).collect();
        let devices: Vec<String> = (0..=count).map(|n| format!("rw{own}x{n}")).collect();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machines/wire.py");
        let mut wire = Command::new("python3")
            .arg(script)
            .args([delay.to_string(), loss.to_string()])
            .args(&devices)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("no python3: {error}"))?;
        let mut ready = String::new();
        let heard = wire.stdout.take().map(|told| BufReader::new(told).read_line(&mut ready));
        let machines = Self { wire, names };
        if !matches!(heard, Some(Ok(1..))) {
            return Err("no TUN devices may be made".to_owned());
        }
        up(&devices[0], 1, &[])?;
        for (n, (name, device)) in machines.names.iter().zip(&devices[1..]).enumerate() {
            ip(&["netns", "add", name])?;
            ip(&["link", "set", device, "netns", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
            up(device, n + 2, &["-n", name])?;
        }
        Ok(machines)
    }

    /// Where the coordinator listens.
    pub(crate) fn home() -> SocketAddr {
        SocketAddr::from((Ipv4Addr::new(10, 77, 0, 1), 0))
    }

    /// Where a machine listens.
    pub(crate) fn address(n: usize) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::new(10, 77, 0, u8::try_from(n + 2).unwrap()), 0))
    }

    /// A program on a machine.
    pub(crate) fn command(&self, n: usize, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[n]]).arg(program);
        command
    }

    /// Pulls a machine's plug: nothing arrives there and nothing comes from it, and nobody is told.
    pub(crate) fn cut(&mut self, n: usize) {
        let wire = self.wire.stdin.as_mut().unwrap();
        wire.write_all(format!("cut {}\n", n + 2).as_bytes()).unwrap();
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        drop(self.wire.stdin.take()); // its devices go with it
        let _ = self.wire.wait();
        for name in &self.names {
            let _ = ip(&["netns", "del", name]);
        }
    }
}

fn up(device: &str, number: usize, at: &[&str]) -> Result<(), String> {
    let address = format!("10.77.0.{number}/24");
    ip(&[at, &["addr", "add", &address, "dev", device]].concat())?;
    ip(&[at, &["link", "set", device, "up"]].concat())
}

fn ip(words: &[&str]) -> Result<(), String> {
    let done = Command::new("ip").args(words).output().map_err(|error| format!("no iproute2: {error}"))?;
    let why = String::from_utf8_lossy(&done.stderr);
    if done.status.success() { Ok(()) } else { Err(format!("ip {}: {}", words.join(" "), why.trim())) }
}
