//! Chance from a seed, and nonsense made of it.

use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// The dice of the `number`-th of all who share a seed.
    pub(crate) fn of(seed: u64, number: u64) -> Self {
        let mut dice = Self(seed);
        Self(dice.next() ^ number.wrapping_mul(0xD6E8_FEB8_6659_FD93))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    /// A number from `0` to `most`.
    pub(crate) fn up_to(&mut self, most: u64) -> u64 {
        self.next() % most.saturating_add(1).max(1)
    }

    pub(crate) fn in_thousand(&mut self, times: u32) -> bool {
        self.up_to(999) < u64::from(times)
    }

    /// Half of it to one and a half of it, never nothing.
    pub(crate) fn around(&mut self, middle: u64) -> u64 {
        (middle / 2 + self.up_to(middle)).max(1)
    }

    pub(crate) fn moment(&mut self, longest: Duration) -> Duration {
        Duration::from_millis(self.up_to(u64::try_from(longest.as_millis()).unwrap_or(u64::MAX - 1)))
    }

    pub(crate) fn bytes(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&self.next().to_be_bytes()));
        bytes
    }

    /// A word that nobody has said before, and a space.
    pub(crate) fn word(&mut self) -> String {
        let syllables = 1 + self.up_to(3);
        let mut word = String::with_capacity(16);
        for _ in 0..syllables {
            let bits = self.next();
            for (letters, shift) in [("bdfghjklmnprstvwz", 0), ("aeiou", 16), ("lmnrstx", 32)] {
                let at = usize::try_from((bits >> shift) % letters.len() as u64).unwrap_or_default();
                word.push_str(letters.get(at..=at).unwrap_or_default());
            }
        }
        word.push(if self.up_to(9) == 0 { '\n' } else { ' ' });
        word
    }
}
