//! Is a result what it says it is: the product's six checks, over evidence that holds no words.
//!
//! | check | plain | sealed | finds |
//! |---|---|---|---|
//! | response quality | yes | no | [`Unrewarded::Empty`] |
//! | token count | yes | yes | [`Unrewarded::Inflated`] |
//! | timing | yes | yes | [`Refused::TooFast`] |
//! | self-dealing | yes | yes | [`Unrewarded::SelfDealing`] |
//! | entropy | yes | no | [`Unrewarded::LowEntropy`] |
//! | duplicate output | yes | no | [`Unrewarded::Duplicate`] |
//!
//! Which of them run is told by [`Evidence`]: what cannot be read cannot be asked about. What is refused is physically
//! impossible, so no honest node does it on any machine; a lie within that passes here, and is left to challenges and
//! to recounts with the model's tokenizer. A count of tokens proves no lie: what a node drops from an answer, such as
//! the line breaks behind a thought, has no bound that a user could not pass. It is only not paid. What a verdict costs
//! whom stands in `docs/adr/0004-validation.md`.
//!
//! A [`Digest`] takes an answer in as it streams by; at its end [`judge`] gives the verdict.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use crate::catalog::{ModelSpec, Parameters};
use crate::id::WalletAddress;
use crate::job::FinishReason;
use crate::units::{Bytes, TokenCount};

/// Tokens that no answer shows: the tags around thoughts and the line breaks within them, on both sides.
const MARKUP_TOKENS: u64 = 16;
/// Tokens around the name of a tool call, or around its arguments, that are not shown: tags, and the JSON around it.
const CALL_TOKENS: u64 = 16;
/// Most names and arguments that are allowed such tokens: beyond, only what is shown counts.
const CALLS_MAX: u64 = 256;
/// Bytes per millisecond at which the fastest machine known to us reads weights: eight B200 in one box, 8 TB/s each
/// (NVIDIA, DGX B200 data sheet). An M3 Ultra reads at 0.8 TB/s, a desktop's CPU at 0.1.
const READ_BYTES_PER_MS_MAX: u64 = 64_000_000_000;
/// What clocks may err by: one step of the coarsest that is in use.
const CLOCK_SLACK: Duration = Duration::from_millis(20);
/// Words are cut after so many bytes, so that text without spaces has words, too; any run of 1, 2, 3 or 4 bytes
/// repeated is the same word again.
const WORD_BYTES_MAX: u32 = 12;
/// Fewest words of which entropy says anything.
const WORDS_MIN: u64 = 32;
/// Counters of words, by hash.
const BUCKETS: usize = 64;
/// Tenths of a word: an answer that has fewer different words than this, in effect, is junk. Two words in turn have
/// 2.0; a table of one column, two thirds of which are its rules, has 2.24.
const DIFFERENT_WORDS_TENTHS_MIN: u128 = 22;
/// Answers shorter than this are the same for many prompts with good reason: greetings, refusals, yes and no.
const DUPLICATE_BYTES_MIN: u64 = 512;
/// Long answers that are remembered of one provider.
const RECENT_MAX: usize = 32;

/// What an answer is known by: counts and hashes, in a size that does not grow with it.
#[derive(Clone)]
pub struct Digest {
    bytes: u64,
    /// Names and arguments of tool calls.
    calls: u64,
    whole: Fnv,
    word: Fnv,
    word_bytes: u32,
    words: u64,
    /// How many words fell into each bucket.
    buckets: Box<[u32; BUCKETS]>,
}

/// Where in an answer a piece of text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// What the user reads.
    Content,
    /// What the model thought.
    Reasoning,
    /// The name of a tool call, or its arguments.
    ToolCall,
}

/// Long answers that a provider gave lately, by hash: which prompt, which answer.
#[derive(Clone, Debug, Default)]
pub struct Recent(VecDeque<(u64, u64)>);

/// What there is to see of a result.
#[derive(Debug)]
pub enum Evidence<'a> {
    /// An answer that passed in plain text.
    Plain {
        /// What passed.
        digest: &'a Digest,
        /// Hash of the prompt that it answers.
        prompt: u64,
        /// The provider's long answers before this one; this one is added.
        recent: &'a mut Recent,
    },
    /// An answer that only its user can open.
    Sealed {
        /// Bytes of the text inside, by the length of the boxes.
        bytes: Bytes,
    },
}

/// What a provider says of a result, and what is known around it.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// The model that is said to have answered.
    pub model: &'static ModelSpec,
    /// Tokens that it is said to have written.
    pub tokens: TokenCount,
    /// Most tokens that were asked for.
    pub tokens_max: TokenCount,
    /// Tokens that may have been written without being shown because the user asked so: those of a stop text, and all
    /// of them where the user weighted tokens by id.
    pub unseen: TokenCount,
    /// Why the answer is said to have ended; `None` when it was cut.
    pub finish: Option<FinishReason>,
    /// From sending the job to hearing its end.
    pub took: Duration,
    /// Where the provider's earnings go.
    pub provider_wallet: Option<WalletAddress>,
    /// Whence the user's money comes.
    pub client_wallet: Option<WalletAddress>,
}

/// What a result is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Paid and rewarded.
    #[default]
    Good,
    /// Paid, for the user could have asked for just that; never rewarded from the emission.
    Unrewarded(Unrewarded),
    /// Nobody pays for it.
    Refused(Refused),
}

/// Why a result earns no reward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Unrewarded {
    /// There is no word in it, and nothing that was asked for explains why.
    #[error("the answer is empty")]
    Empty,
    /// More tokens are claimed than the text can have: paid is what it can ([`Digest::tokens_max`]).
    #[error("{claimed} tokens are claimed for a text of at most {most}")]
    Inflated {
        /// What is claimed.
        claimed: TokenCount,
        /// One token for each byte, and those that are not shown.
        most: TokenCount,
    },
    /// Client and provider are one wallet.
    #[error("client and provider share a wallet")]
    SelfDealing,
    /// The same few words over and over.
    #[error("the answer repeats a few words")]
    LowEntropy,
    /// The provider gave the same long answer to another prompt.
    #[error("the same answer was given to another prompt")]
    Duplicate,
    /// The answer was cut by a crash of the network's own, and paid as far as it was noted. [`judge`] never says so.
    #[error("nobody lived to judge the answer")]
    Unjudged,
}

/// Why nobody pays for a result: no honest node sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// No machine reads the model's weights so often in so short a time.
    #[error("{claimed} tokens in {took:?}, where the fastest machine known takes {least:?}")]
    TooFast {
        /// What is claimed.
        claimed: TokenCount,
        /// What it is said to have taken.
        took: Duration,
        /// What it would have taken at least.
        least: Duration,
    },
}

impl Verdict {
    /// One word for the record: `good`, or the name of the finding.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Unrewarded(Unrewarded::Empty) => "empty",
            Self::Unrewarded(Unrewarded::Inflated { .. }) => "inflated",
            Self::Unrewarded(Unrewarded::SelfDealing) => "self_dealing",
            Self::Unrewarded(Unrewarded::LowEntropy) => "low_entropy",
            Self::Unrewarded(Unrewarded::Duplicate) => "duplicate",
            Self::Unrewarded(Unrewarded::Unjudged) => "unjudged",
            Self::Refused(Refused::TooFast { .. }) => "refused_too_fast",
        }
    }
}

/// Judges a result: the first finding, those for which nobody pays first.
#[must_use]
pub fn judge(evidence: Evidence<'_>, claim: &Claim) -> Verdict {
    if let Err(refused) = in_time(claim) {
        return Verdict::Refused(refused);
    }
    let counted = over_claimed(&evidence, claim);
    if claim.client_wallet.is_some() && claim.client_wallet == claim.provider_wallet {
        return Verdict::Unrewarded(Unrewarded::SelfDealing);
    }
    let Evidence::Plain { digest, prompt, recent } = evidence else {
        return counted.map_or_else(Verdict::Unrewarded, |()| Verdict::Good);
    };
    let repeated = recent.repeats(prompt, digest);
    if digest.is_empty() && (counted.is_err() || !asked_for_nothing(claim)) {
        Verdict::Unrewarded(Unrewarded::Empty)
    } else if let Err(inflated) = counted {
        Verdict::Unrewarded(inflated)
    } else if digest.is_monotonous() {
        Verdict::Unrewarded(Unrewarded::LowEntropy)
    } else if repeated {
        Verdict::Unrewarded(Unrewarded::Duplicate)
    } else {
        Verdict::Good
    }
}

/// The least time in which any known machine writes `tokens` with `model`, one after another.
///
/// Each token takes a pass through the weights that it uses, once the one before it is known: batches share the pass
/// among users, not among the tokens of one. Of experts only the chosen ones are read, of an embedding that is not the
/// output head as well only a row.
#[must_use]
pub fn least_time(model: &ModelSpec, tokens: TokenCount) -> Duration {
    let Parameters { matrix, .. } = model.shape.active();
    let table = if model.shape.tied { 0 } else { model.shape.vocab * model.shape.hidden };
    let read = Parameters { matrix: matrix - table, ..model.shape.active() };
    let bytes = model.quantization.bytes(read).get();
    Duration::from_millis(tokens.get().saturating_mul(bytes) / READ_BYTES_PER_MS_MAX)
}

/// Each token spells at least one byte, but for those that are not shown.
fn over_claimed(evidence: &Evidence<'_>, claim: &Claim) -> Result<(), Unrewarded> {
    let claimed = claim.tokens;
    let shown = match evidence {
        Evidence::Plain { digest, .. } => digest.tokens_max(),
        Evidence::Sealed { bytes } => TokenCount::new(bytes.get().saturating_add(MARKUP_TOKENS)),
    };
    let most = shown + claim.unseen;
    if claimed <= most { Ok(()) } else { Err(Unrewarded::Inflated { claimed, most }) }
}

fn in_time(claim: &Claim) -> Result<(), Refused> {
    let least = least_time(claim.model, claim.tokens);
    if least <= claim.took.saturating_add(CLOCK_SLACK) {
        Ok(())
    } else {
        Err(Refused::TooFast { claimed: claim.tokens, took: claim.took, least })
    }
}

/// Whether an answer without a word is what was asked for: a stop text may be the first that a model says, and a few
/// tokens may all be markup. Who has not written a token has not met a stop text either.
fn asked_for_nothing(claim: &Claim) -> bool {
    let ran_out = claim.finish == Some(FinishReason::Length) && claim.tokens >= claim.tokens_max;
    claim.tokens > TokenCount::ZERO && (claim.unseen > TokenCount::ZERO || ran_out)
}

impl Digest {
    /// Of an answer that has not begun.
    #[must_use]
    pub fn new() -> Self {
        Self {
            bytes: 0,
            calls: 0,
            whole: Fnv::EMPTY,
            word: Fnv::EMPTY,
            word_bytes: 0,
            words: 0,
            buckets: Box::new([0; BUCKETS]),
        }
    }

    /// Takes in the next piece of an answer. How an answer is cut into pieces changes nothing.
    pub fn take(&mut self, part: Part, text: &str) {
        if part == Part::ToolCall && !text.is_empty() {
            self.calls += 1;
        }
        self.bytes = self.bytes.saturating_add(text.len() as u64);
        for &byte in text.as_bytes() {
            self.whole.take(byte);
            if byte.is_ascii_whitespace() {
                self.end_word();
                continue;
            }
            self.word.take(byte);
            self.word_bytes += 1;
            if self.word_bytes == WORD_BYTES_MAX {
                self.end_word();
            }
        }
    }

    /// Whether nothing has been said.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Most tokens that what was said can have: one a byte, and those that are not shown.
    #[must_use]
    pub fn tokens_max(&self) -> TokenCount {
        let hidden = MARKUP_TOKENS + CALL_TOKENS * self.calls.min(CALLS_MAX);
        TokenCount::new(self.bytes.saturating_add(hidden))
    }

    fn end_word(&mut self) {
        if self.word_bytes == 0 {
            return;
        }
        let [top, ..] = self.word.0.wrapping_mul(SPREAD).to_be_bytes();
        let count = &mut self.buckets[usize::from(top) % BUCKETS];
        *count = count.saturating_add(1);
        self.words += 1;
        (self.word, self.word_bytes) = (Fnv::EMPTY, 0);
    }

    /// Whether its words are so few that nothing can be said with them: the inverse of the chance that two words drawn
    /// from it are the same (Simpson's index; the Renyi entropy of order 2) is how many different ones it has.
    fn is_monotonous(&self) -> bool {
        let pairs: u128 = self.buckets.iter().map(|&count| u128::from(count).pow(2)).sum();
        let words = u128::from(self.words);
        self.words >= WORDS_MIN && 10 * words * words < DIFFERENT_WORDS_TENTHS_MIN * pairs
    }
}

impl Default for Digest {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Digest {
    /// Sizes alone: a hash of a short text is as good as the text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Digest")
            .field("bytes", &self.bytes)
            .field("words", &self.words)
            .finish_non_exhaustive()
    }
}

impl Recent {
    /// Whether this answer was given to another prompt; remembers it. To the same prompt it may well be the same: by
    /// seed, or at temperature 0.
    fn repeats(&mut self, prompt: u64, digest: &Digest) -> bool {
        if digest.bytes < DUPLICATE_BYTES_MIN {
            return false;
        }
        let answer = digest.whole.0;
        let is_repeated = self.0.iter().any(|&(asked, given)| given == answer && asked != prompt);
        if !self.0.contains(&(prompt, answer)) {
            self.0.push_back((prompt, answer));
        }
        if self.0.len() > RECENT_MAX {
            self.0.pop_front();
        }
        is_repeated
    }
}

/// FNV-1a over 64 bits (Fowler, Noll, Vo): byte by byte, so that pieces of any size give one hash.
#[derive(Clone, Copy)]
struct Fnv(u64);

/// An odd number near 2^64 / golden ratio: brings the low bits of a hash up (Knuth, TAOCP 3, section 6.4).
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

impl Fnv {
    const EMPTY: Self = Self(0xCBF2_9CE4_8422_2325);

    fn take(&mut self, byte: u8) {
        self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;
    use proptest::prelude::*;

    const POEM: &str = "The apparition of these faces in the crowd: petals on a wet, black bough. ";

    fn spec(alias: &str) -> &'static ModelSpec {
        catalog::resolve(alias).unwrap()
    }

    /// A result that a machine of the expected speed gives.
    fn claim(tokens: u64) -> Claim {
        let model = spec("qwen3-8b");
        Claim {
            model,
            tokens: TokenCount::new(tokens),
            tokens_max: TokenCount::new(2048),
            unseen: TokenCount::ZERO,
            finish: Some(FinishReason::Stop),
            took: model.expected_speed().decode.time_for(TokenCount::new(tokens)),
            provider_wallet: None,
            client_wallet: None,
        }
    }

    fn said(text: &str) -> Digest {
        let mut digest = Digest::new();
        digest.take(Part::Content, text);
        digest
    }

    fn judged(text: &str, claim: &Claim) -> Verdict {
        let (digest, mut recent) = (said(text), Recent::default());
        judge(Evidence::Plain { digest: &digest, prompt: 1, recent: &mut recent }, claim)
    }

    #[test]
    fn short_right_answers_pass() {
        for (text, tokens) in [("Yes", 1), ("4", 1), ("no.", 2), ("東", 3), ("👍", 4), (" ", 1)] {
            assert_eq!(judged(text, &claim(tokens)), Verdict::Good, "{text:?}");
        }
        let one = Claim { tokens_max: TokenCount::new(1), finish: Some(FinishReason::Length), ..claim(1) };
        assert_eq!(judged("", &one), Verdict::Good, "the one token was `<think>`");
        assert_eq!(judged("I", &one), Verdict::Good);
        let mut call = Digest::new();
        call.take(Part::ToolCall, "f{}");
        let evidence = Evidence::Plain { digest: &call, prompt: 1, recent: &mut Recent::default() };
        assert_eq!(judge(evidence, &claim(30)), Verdict::Good);
    }

    #[test]
    fn who_says_nothing_gave_an_empty_answer_whatever_is_claimed() {
        let empty = Verdict::Unrewarded(Unrewarded::Empty);
        for tokens in [0, 5, 200] {
            assert_eq!(judged("", &claim(tokens)), empty, "{tokens}");
        }
        let unseen = TokenCount::new(9);
        assert_eq!(judged("", &Claim { unseen, ..claim(0) }), empty, "no token is no stop text");
        assert_eq!(judged("", &Claim { unseen, ..claim(200) }), empty, "nor are two hundred");
    }

    /// "Think one word, then print 300 blank lines": the filter of thoughts drops the lines behind one.
    #[test]
    fn blank_lines_behind_a_thought_are_nobodys_lie() {
        use crate::chat::reasoning::{ReasoningFilter, Start};
        let split =
            ReasoningFilter::new(Start::Answer).push(&format!("<think>so</think>{}", "\n".repeat(300)));
        assert!(split.content.is_empty());
        let verdict = judged(&split.reasoning, &claim(303));
        let (claimed, most) = (TokenCount::new(303), TokenCount::new(2 + MARKUP_TOKENS));
        assert_eq!(verdict, Verdict::Unrewarded(Unrewarded::Inflated { claimed, most }));
    }

    #[test]
    fn what_the_user_asked_not_to_see_is_nobodys_lie() {
        let stopped = Claim { unseen: TokenCount::new(9), ..claim(3) };
        assert_eq!(judged("", &stopped), Verdict::Good, "the first words were the stop text");
        let weighted = Claim { unseen: TokenCount::new(2048), ..claim(2048) };
        assert_eq!(judged("", &weighted), Verdict::Good, "tokens without text were asked for");
    }

    #[test]
    fn a_text_holds_no_more_tokens_than_bytes() {
        let (claimed, most) = (TokenCount::new(60), TokenCount::new(3 + MARKUP_TOKENS));
        let inflated = Verdict::Unrewarded(Unrewarded::Inflated { claimed, most });
        assert_eq!(judged("Yes", &claim(60)), inflated);
        let sealed = |bytes| judge(Evidence::Sealed { bytes: Bytes::new(bytes) }, &claim(60));
        assert_eq!(sealed(3), inflated);
        assert_eq!(sealed(60), Verdict::Good);
    }

    #[test]
    fn no_model_of_the_catalogue_is_too_fast_at_twenty_times_its_stated_speed() {
        for model in catalog::all() {
            let tokens = TokenCount::new(2048);
            let took = model.expected_speed().decode.time_for(tokens) / 20;
            let claim = Claim { model, took, ..claim(2048) };
            assert_eq!(in_time(&claim), Ok(()), "{}", model.alias);
        }
    }

    #[test]
    fn an_answer_faster_than_memory_is_refused() {
        // 70.6 G parameters at 4.5 bits, without the embedding: 39.1 GB a token.
        let model = spec("llama-3.3-70b");
        let least = least_time(model, TokenCount::new(2048));
        assert_eq!(least.as_millis(), 1251);
        let took = Duration::from_millis(500);
        let claimed = TokenCount::new(2048);
        let fast = Claim { model, took, ..claim(2048) };
        assert_eq!(in_time(&fast), Err(Refused::TooFast { claimed, took, least }));
        // Of 235 G parameters 22 G take part in a token.
        assert_eq!(in_time(&Claim { model: spec("qwen3-235b"), ..fast }), Ok(()));
    }

    #[test]
    fn a_few_words_over_and_over_are_junk_and_prose_is_not() {
        let low = Verdict::Unrewarded(Unrewarded::LowEntropy);
        let check = |text: String, expected: Verdict| {
            assert_eq!(judged(&text, &claim(60)), expected, "{text:.40}");
        };
        check("the ".repeat(100), low);
        check("a".repeat(600), low);
        check("哈".repeat(200), low);
        check("foo bar ".repeat(60), low);
        check("the ".repeat(20), Verdict::Good); // too short to tell
        check(POEM.repeat(5), Verdict::Good);
        check((0..100).map(|n| format!("| {n} | {} |\n", n * n)).collect(), Verdict::Good);
        check((0..100).map(|n| format!("| {n} |\n")).collect(), Verdict::Good);
        check(
            "人工智能正在改变世界,它带来机会,也带来风险;我们应当谨慎使用这项技术。".repeat(5),
            Verdict::Good,
        );
    }

    #[test]
    fn a_long_answer_to_two_prompts_is_a_duplicate_and_to_one_prompt_is_not() {
        let (long, short) = (said(&POEM.repeat(8)), said(POEM));
        let mut recent = Recent::default();
        let mut check = |digest: &Digest, prompt: u64, expected: Verdict| {
            let evidence = Evidence::Plain { digest, prompt, recent: &mut recent };
            assert_eq!(judge(evidence, &claim(20)), expected);
        };
        check(&long, 1, Verdict::Good);
        check(&long, 1, Verdict::Good);
        check(&long, 2, Verdict::Unrewarded(Unrewarded::Duplicate));
        check(&short, 1, Verdict::Good);
        check(&short, 2, Verdict::Good);
    }

    #[test]
    fn what_is_remembered_of_a_provider_is_bounded() {
        let mut recent = Recent::default();
        for n in 0..1000_u64 {
            let _ = recent.repeats(n, &said(&format!("{n:0600}")));
        }
        assert_eq!(recent.0.len(), RECENT_MAX);
    }

    #[test]
    fn the_same_wallet_on_both_sides_earns_nothing_also_when_sealed() {
        let wallet = Some("0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed".parse().unwrap());
        let own = Claim { provider_wallet: wallet, client_wallet: wallet, ..claim(20) };
        let finding = Verdict::Unrewarded(Unrewarded::SelfDealing);
        assert_eq!(judged(POEM, &own), finding);
        assert_eq!(judge(Evidence::Sealed { bytes: Bytes::new(80) }, &own), finding);
        assert_eq!(judged(POEM, &Claim { client_wallet: None, ..own }), Verdict::Good);
        assert_eq!(judged(POEM, &claim(20)), Verdict::Good, "no wallet is nobody's wallet");
    }

    #[test]
    fn what_is_sealed_is_asked_only_for_what_can_be_seen() {
        let sealed = |bytes| judge(Evidence::Sealed { bytes: Bytes::new(bytes) }, &claim(4));
        assert_eq!(sealed(0), Verdict::Good, "whether it is empty cannot be seen");
    }

    #[test]
    fn debug_shows_no_hash_of_an_answer() {
        assert_eq!(format!("{:?}", said("ab cd ")), "Digest { bytes: 6, words: 2, .. }");
    }

    proptest! {
        #[test]
        fn streamed_is_joined(text in ".{0,200}", cuts in proptest::collection::vec(0usize..200, 0..6)) {
            let mut streamed = Digest::new();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&at| text.is_char_boundary(at)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            for pair in cuts.windows(2) {
                streamed.take(Part::Content, &text[pair[0]..pair[1]]);
            }
            let joined = said(&text);
            prop_assert_eq!(streamed.whole.0, joined.whole.0);
            prop_assert_eq!((streamed.bytes, streamed.words), (joined.bytes, joined.words));
            prop_assert_eq!(streamed.buckets, joined.buckets);
        }

        #[test]
        fn honest_counts_and_speeds_are_never_refused(text in ".{1,300}", model in 0usize..21, share in 1u64..=1000) {
            let model = &catalog::all()[model];
            let tokens = TokenCount::new((text.len() as u64 * share).div_ceil(1000));
            let took = model.expected_speed().decode.time_for(tokens);
            let verdict = judged(&text, &Claim { model, tokens, took, ..claim(0) });
            prop_assert!(!matches!(verdict, Verdict::Refused(_)), "{:?}", verdict);
        }
    }
}
