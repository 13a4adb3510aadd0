//! How fast this machine's memory can be read: the bar for decoding, which reads every weight once a token.

#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::hint::black_box;
use std::io;
use std::time::Instant;

use memmap2::MmapMut;

/// Far more than any cache holds.
const BYTES: usize = 512 << 20;

/// Rounds of each way of reading, of which the fastest way is kept.
const ROUNDS: usize = 4;

/// How far ahead of the reader a line is asked for, in bytes. 0: the processor alone guesses what comes next.
const AHEAD: [usize; 4] = [0, 1 << 10, 2 << 10, 4 << 10];

/// Memory that is read in order by some threads, each a part of its own, from huge pages where the system has them.
pub(crate) struct Probe {
    memory: MmapMut,
    threads: usize,
    ahead: usize,
    fastest: f64,
}

impl Probe {
    pub(crate) fn new(threads: usize) -> io::Result<Self> {
        let mut memory = MmapMut::map_anon(BYTES)?;
        #[cfg(target_os = "linux")]
        // A refusal leaves small pages: then those are what there is to measure.
        let _refused = memory.advise(memmap2::Advice::HugePage);
        memory.fill(1);
        let mut probe = Self { memory, threads: threads.max(1), ahead: 0, fastest: 0.0 };
        let mut best = (0.0, 0);
        for ahead in AHEAD {
            probe.ahead = ahead;
            for _ in 0..ROUNDS {
                let found = (probe.read(), ahead);
                best = if found.0 > best.0 { found } else { best };
            }
        }
        probe.ahead = best.1;
        Ok(probe)
    }

    /// Bytes a second of one round.
    pub(crate) fn read(&mut self) -> f64 {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in self.memory.chunks(BYTES.div_ceil(self.threads)) {
                let ahead = self.ahead;
                scope.spawn(move || black_box(sum(part, ahead)));
            }
        });
        let found = BYTES as f64 / start.elapsed().as_secs_f64();
        self.fastest = self.fastest.max(found);
        found
    }

    /// The most bytes a second of all rounds.
    pub(crate) const fn fastest(&self) -> f64 {
        self.fastest
    }
}

/// Reads a line of the cache after the other.
fn sum(bytes: &[u8], ahead: usize) -> u64 {
    let mut sums = [0_u64; 8];
    for line in bytes.chunks_exact(64) {
        if ahead > 0 {
            prefetch(line.as_ptr().wrapping_add(ahead));
        }
        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

/// Asks for the line at `address` ahead of its use.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "the instruction has no safe name")]
fn prefetch(address: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

    // SAFETY: a prefetch changes nothing that a program could see, and an address that is not mapped is ignored.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
}

/// Elsewhere the processor's own guess has to do.
#[cfg(not(target_arch = "x86_64"))]
const fn prefetch(_address: *const u8) {}
