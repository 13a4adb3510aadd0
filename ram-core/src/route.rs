//! Who serves a job: one pass over the candidates, a choice, and a named reason for each one refused.
//!
//! The order is the product's: those with the model in memory before those that must load it first; among them the
//! provider that the client prefers; then the least expected time to the whole answer:
//!
//! ```text
//! expected = wait for a slot + load or download + prompt / prefill speed + answer / decode speed
//! ```
//!
//! in bands of [`BAND_MS`], for finer differences are noise; within a band the product's score decides, free memory x
//! reputation; then the id, so that the same candidates give the same choice in any order.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use crate::id::{ProviderId, WalletAddress};
use crate::provider::{Load, ModelOffer, ModelState, Speed, Thermal};
use crate::units::{Bytes, Permille, TokenCount};

/// Expected times within one band are equal.
pub const BAND_MS: u64 = 50;
/// Jobs that a provider may fail in a row, by its own fault, before it gets no more for a while.
pub const STRIKES_MAX: u32 = 3;
/// Bytes per millisecond from a disk into memory: 1 GB/s, what a slow SSD reads.
const LOAD_BYTES_PER_MS: u64 = 1_000_000;
/// Bytes per millisecond from the hub: 25 MB/s, a line of 200 Mbit/s.
const DOWNLOAD_BYTES_PER_MS: u64 = 25_000;
/// What each request that already runs adds to the time of one token: a guess between perfect batching and none.
const SHARING: Permille = Permille::new(500);
/// What heat adds to all times.
const FAIR: Permille = Permille::new(1250);
const SERIOUS: Permille = Permille::new(2000);

/// A provider, as the coordinator sees it at this moment.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Who it is.
    pub provider: ProviderId,
    /// Where its earnings go.
    pub wallet: Option<WalletAddress>,
    /// What it says of the model; `None` when it does not serve it.
    pub offer: Option<&'a ModelOffer>,
    /// How busy it said it is.
    pub load: Load,
    /// Jobs that the coordinator has given it and that have not ended: newer than its own word.
    pub in_flight: u16,
    /// How far it is trusted.
    pub reputation: Permille,
    /// Whether it takes no new jobs.
    pub draining: bool,
    /// Jobs in a row that it has failed lately by its own fault.
    pub strikes: u32,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Tokens of the prompt, at most.
    pub prompt: TokenCount,
    /// Tokens of the answer, at most.
    pub answer: TokenCount,
    /// Bytes of the model's weights: what a cold provider loads.
    pub weights: Bytes,
    /// Memory that the model needs where it is not loaded yet (see [`memory`](crate::memory)).
    pub memory: Bytes,
    /// Speed to expect where none is measured.
    pub unmeasured: Speed,
    /// Requests that may wait on one provider beyond its slots.
    pub queue_max: u16,
    /// Least reputation that is trusted with the job.
    pub reputation_min: Permille,
    /// The provider that the client would like.
    pub preferred: Option<ProviderId>,
    /// The client's wallet, if providers of the same wallet are to be left out.
    pub client_wallet: Option<WalletAddress>,
    /// Providers that have failed this job.
    pub tried: &'a [ProviderId],
}

/// Who serves a job, and why the others do not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// Who serves it; `None` when nobody can.
    pub chosen: Option<ProviderId>,
    /// Milliseconds until its answer should be whole; 0 when nobody was chosen.
    pub expected_ms: u64,
    /// Everyone who cannot serve it, each with the first reason that holds. Eligible providers that came second are not
    /// here.
    pub refused: Vec<(ProviderId, Refusal)>,
}

/// Why a provider cannot serve a job. Reasons are tried in this order, and the first that holds is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "reason", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Refusal {
    /// It has failed this very job.
    #[error("it has failed this job already")]
    AlreadyTried,
    /// It does not offer the model.
    #[error("it does not serve the model")]
    NotServingModel,
    /// It takes no new jobs.
    #[error("it is draining")]
    Draining,
    /// It has failed as many jobs in a row as [`STRIKES_MAX`], by its own fault.
    #[error("it failed {failures} jobs in a row, and rests")]
    Failing {
        /// How many.
        failures: u32,
    },
    /// Its wallet is the client's.
    #[error("its wallet is the client's own")]
    SameWallet,
    /// Its reputation is below what the job asks for.
    #[error("its reputation of {reputation} is below {required}")]
    Untrusted {
        /// What it has.
        reputation: Permille,
        /// What is asked for.
        required: Permille,
    },
    /// It is too hot to be given work.
    #[error("it is too hot")]
    ThermalCritical,
    /// All its slots are taken, and so are the places to wait.
    #[error("all its {slots} slots are taken")]
    NoFreeSlot {
        /// How many it has.
        slots: u16,
    },
    /// The model is not loaded, and does not fit into what is free.
    #[error("the model needs {needed}, and {free} are free")]
    NotEnoughMemory {
        /// What the model needs.
        needed: Bytes,
        /// What is free.
        free: Bytes,
    },
}

/// Chooses who serves a job. Takes time linear in the candidates; the same for any order of them.
#[must_use]
pub fn choose(candidates: &[Candidate<'_>], wish: &Wish<'_>) -> Choice {
    let mut choice = Choice::default();
    let mut best: Option<Rank> = None;
    for candidate in candidates {
        match examine(candidate, wish) {
            Err(reason) => choice.refused.push((candidate.provider, reason)),
            Ok(offer) => {
                let expected_ms = expected_ms(candidate, offer, wish);
                let rank = Rank::of(candidate, offer, wish, expected_ms);
                if best.is_none_or(|best| rank < best) {
                    best = Some(rank);
                    (choice.chosen, choice.expected_ms) = (Some(candidate.provider), expected_ms);
                }
            }
        }
    }
    choice
}

/// Whether a candidate can serve a job: its offer, or the first reason against it.
///
/// # Errors
/// The first [`Refusal`] that holds.
pub fn examine<'a>(candidate: &Candidate<'a>, wish: &Wish<'_>) -> Result<&'a ModelOffer, Refusal> {
    let Candidate { provider, load, reputation, .. } = *candidate;
    if wish.tried.contains(&provider) {
        return Err(Refusal::AlreadyTried);
    }
    let offer = candidate.offer.ok_or(Refusal::NotServingModel)?;
    if candidate.draining {
        return Err(Refusal::Draining);
    }
    if candidate.strikes >= STRIKES_MAX {
        return Err(Refusal::Failing { failures: candidate.strikes });
    }
    if wish.client_wallet.is_some() && wish.client_wallet == candidate.wallet {
        return Err(Refusal::SameWallet);
    }
    if reputation < wish.reputation_min {
        return Err(Refusal::Untrusted { reputation, required: wish.reputation_min });
    }
    if load.thermal == Thermal::Critical {
        return Err(Refusal::ThermalCritical);
    }
    if busy(candidate) >= u32::from(load.slots) + u32::from(wish.queue_max) || load.slots == 0 {
        return Err(Refusal::NoFreeSlot { slots: load.slots });
    }
    if offer.state != ModelState::Loaded && wish.memory > load.memory_free {
        return Err(Refusal::NotEnoughMemory { needed: wish.memory, free: load.memory_free });
    }
    Ok(offer)
}

/// The order of eligible candidates; the least is chosen. Ids differ, so no two ranks are equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    cold: bool,
    not_preferred: bool,
    band: u64,
    score: Reverse<u128>,
    id: ProviderId,
}

impl Rank {
    fn of(candidate: &Candidate<'_>, offer: &ModelOffer, wish: &Wish<'_>, expected_ms: u64) -> Self {
        let memory = u128::from(candidate.load.memory_free.get());
        Self {
            cold: offer.state != ModelState::Loaded,
            not_preferred: wish.preferred != Some(candidate.provider),
            band: expected_ms / BAND_MS,
            score: Reverse(memory * u128::from(candidate.reputation.get())),
            id: candidate.provider,
        }
    }
}

/// Requests that the candidate has, by its own word or by what it has been given since.
fn busy(candidate: &Candidate<'_>) -> u32 {
    let told = u32::from(candidate.load.running) + u32::from(candidate.load.queued);
    told.max(u32::from(candidate.in_flight))
}

/// Milliseconds until the whole answer is there. Every step saturates: a speed of zero is the longest of times.
fn expected_ms(candidate: &Candidate<'_>, offer: &ModelOffer, wish: &Wish<'_>) -> u64 {
    let speed = offer.speed.unwrap_or(wish.unmeasured);
    let slots = u32::from(candidate.load.slots).max(1);
    let busy = busy(candidate);
    let running = u64::from(busy.min(slots - 1));
    let alone = millis(speed.prefill.time_for(wish.prompt))
        .saturating_add(millis(speed.decode.time_for(wish.answer)));
    let sharing = u64::from(SHARING.get()).saturating_mul(running).saturating_add(1000);
    let answer = scale(scale(alone, sharing), heat(candidate.load.thermal));
    // Whoever waits does so until as many jobs like this one have ended as stand before it, `slots` at a time.
    let rounds = u64::from((busy + 1).saturating_sub(slots).div_ceil(slots));
    answer.saturating_mul(rounds + 1).saturating_add(load_ms(offer.state, wish.weights))
}

fn load_ms(state: ModelState, weights: Bytes) -> u64 {
    let load = weights.get() / LOAD_BYTES_PER_MS;
    match state {
        ModelState::Loaded => 0,
        ModelState::OnDisk => load,
        ModelState::Downloadable => load.saturating_add(weights.get() / DOWNLOAD_BYTES_PER_MS),
    }
}

fn heat(thermal: Thermal) -> u64 {
    let factor = match thermal {
        Thermal::Nominal => Permille::ONE,
        Thermal::Fair => FAIR,
        Thermal::Serious | Thermal::Critical => SERIOUS,
    };
    u64::from(factor.get())
}

fn scale(millis: u64, permille: u64) -> u64 {
    millis.saturating_mul(permille) / 1000
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::TokenRate;
    use proptest::prelude::*;

    const MODEL: &str = "mlx-community/Qwen3-8B-4bit";

    fn speed(prefill: u64, decode: u64) -> Speed {
        Speed { prefill: TokenRate::new(prefill * 1000), decode: TokenRate::new(decode * 1000) }
    }

    fn offer(state: ModelState, decode: Option<u64>) -> ModelOffer {
        let speed = decode.map(|decode| speed(decode * 8, decode));
        ModelOffer { model: MODEL.parse().unwrap(), state, speed }
    }

    fn id(number: u64) -> ProviderId {
        format!("p_{number:032x}").parse().unwrap()
    }

    fn candidate(number: u64, offer: &ModelOffer) -> Candidate<'_> {
        let load = Load { slots: 4, memory_free: Bytes::from_gib(16), ..Load::default() };
        Candidate {
            provider: id(number),
            wallet: None,
            offer: Some(offer),
            load,
            in_flight: 0,
            reputation: Permille::new(900),
            draining: false,
            strikes: 0,
        }
    }

    fn wish() -> Wish<'static> {
        Wish {
            prompt: TokenCount::new(400),
            answer: TokenCount::new(256),
            weights: Bytes::new(4_600_000_000),
            memory: Bytes::from_gib(6),
            unmeasured: speed(400, 50),
            queue_max: 0,
            reputation_min: Permille::ZERO,
            preferred: None,
            client_wallet: None,
            tried: &[],
        }
    }

    #[test]
    fn a_loaded_model_comes_before_a_faster_machine() {
        let (loaded, fast, far) = (
            offer(ModelState::Loaded, Some(20)),
            offer(ModelState::OnDisk, Some(200)),
            offer(ModelState::Downloadable, Some(200)),
        );
        let all = [candidate(1, &far), candidate(2, &fast), candidate(3, &loaded)];
        assert_eq!(choose(&all, &wish()).chosen, Some(id(3)));
        assert_eq!(choose(&all[..2], &wish()).chosen, Some(id(2)));
        let choice = choose(&all[..1], &wish());
        assert_eq!(choice.chosen, Some(id(1)));
        // 400 tokens at 1600/s, 256 at 200/s, 4.6 GB from the disk and from the hub.
        assert_eq!(choice.expected_ms, 250 + 1280 + 4600 + 184_000);
    }

    #[test]
    fn a_preferred_provider_is_taken_before_better_ones_but_not_before_loaded_ones() {
        let (slow, fast) = (offer(ModelState::Loaded, Some(4)), offer(ModelState::Loaded, Some(60)));
        let cold = offer(ModelState::OnDisk, None);
        let mut all = [candidate(1, &fast), candidate(2, &slow), candidate(3, &cold)];
        let prefer = |number| Wish { preferred: Some(id(number)), ..wish() };
        assert_eq!(choose(&all, &prefer(2)).chosen, Some(id(2)));
        assert_eq!(choose(&all, &prefer(3)).chosen, Some(id(1)));
        all[1].draining = true;
        assert_eq!(choose(&all, &prefer(2)).chosen, Some(id(1)));
    }

    #[test]
    fn the_least_time_wins_and_work_costs_time() {
        let (slow, fast) = (offer(ModelState::Loaded, Some(40)), offer(ModelState::Loaded, Some(60)));
        let mut all = [candidate(1, &slow), candidate(2, &fast)];
        assert_eq!(choose(&all, &wish()).chosen, Some(id(2)));
        all[1].in_flight = 3; // at 2.5 times the time, 60 tokens a second are 24
        assert_eq!(choose(&all, &wish()).chosen, Some(id(1)));
        all[1].in_flight = 0;
        all[1].load.thermal = Thermal::Serious;
        assert_eq!(choose(&all, &wish()).chosen, Some(id(1)));
    }

    #[test]
    fn memory_times_reputation_breaks_ties_and_then_the_id() {
        let offer = offer(ModelState::Loaded, None);
        let mut all = [candidate(2, &offer), candidate(1, &offer), candidate(3, &offer)];
        assert_eq!(choose(&all, &wish()).chosen, Some(id(1)));
        all[2].reputation = Permille::new(901);
        assert_eq!(choose(&all, &wish()).chosen, Some(id(3)));
        all[0].load.memory_free = Bytes::from_gib(17);
        assert_eq!(choose(&all, &wish()).chosen, Some(id(2)));
    }

    #[test]
    fn each_refusal_has_its_name() {
        let (loaded, cold) = (offer(ModelState::Loaded, None), offer(ModelState::OnDisk, None));
        let wallet = Some("0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed".parse().unwrap());
        let good = candidate(1, &loaded);
        let refused = |candidate, wish: &Wish<'_>| examine(&candidate, wish).unwrap_err();
        let check = |candidate, wish: &Wish<'_>, name: &str, words: &str| {
            let refusal = refused(candidate, wish);
            assert_eq!(serde_json::to_value(refusal).unwrap()["reason"], name);
            assert_eq!(refusal.to_string(), words);
        };
        let plain = wish();
        check(good, &Wish { tried: &[id(1)], ..plain }, "already_tried", "it has failed this job already");
        let stranger = Candidate { offer: None, ..good };
        check(stranger, &plain, "not_serving_model", "it does not serve the model");
        check(Candidate { draining: true, ..good }, &plain, "draining", "it is draining");
        let words = "it failed 3 jobs in a row, and rests";
        check(Candidate { strikes: STRIKES_MAX, ..good }, &plain, "failing", words);
        let own = Wish { client_wallet: wallet, ..plain };
        check(Candidate { wallet, ..good }, &own, "same_wallet", "its wallet is the client's own");
        let strict = Wish { reputation_min: Permille::new(950), ..plain };
        check(good, &strict, "untrusted", "its reputation of 900 ‰ is below 950 ‰");
        let hot = Load { thermal: Thermal::Critical, ..good.load };
        check(Candidate { load: hot, ..good }, &plain, "thermal_critical", "it is too hot");
        check(Candidate { in_flight: 4, ..good }, &plain, "no_free_slot", "all its 4 slots are taken");
        let tight = Load { memory_free: Bytes::from_gib(5), ..good.load };
        let words = "the model needs 6.0 GiB, and 5.0 GiB are free";
        check(Candidate { load: tight, offer: Some(&cold), ..good }, &plain, "not_enough_memory", words);
        assert!(examine(&Candidate { load: tight, ..good }, &plain).is_ok(), "loaded already");
    }

    #[test]
    fn a_full_provider_may_be_waited_for_where_the_wish_allows() {
        let offer = offer(ModelState::Loaded, Some(50));
        let full = Candidate { in_flight: 4, ..candidate(1, &offer) };
        assert_eq!(choose(&[full], &wish()).chosen, None);
        let patient = Wish { queue_max: 2, ..wish() };
        let waiting = choose(&[full], &patient);
        assert_eq!(waiting.chosen, Some(id(1)));
        let last = Candidate { in_flight: 3, ..full };
        assert_eq!(waiting.expected_ms, 2 * choose(&[last], &patient).expected_ms);
    }

    #[test]
    fn a_speed_of_zero_is_chosen_last_and_overflows_nothing() {
        let (dead, slow) = (offer(ModelState::Loaded, Some(0)), offer(ModelState::Loaded, Some(1)));
        let all = [candidate(1, &dead), candidate(2, &slow)];
        assert_eq!(choose(&all, &wish()).chosen, Some(id(2)));
        assert_eq!(choose(&all[..1], &wish()).chosen, Some(id(1)));
    }

    fn offers() -> [ModelOffer; 4] {
        use ModelState::{Downloadable, Loaded, OnDisk};
        [offer(Loaded, Some(50)), offer(Loaded, None), offer(OnDisk, Some(80)), offer(Downloadable, None)]
    }

    /// A candidate but for its id, as small numbers that collide often.
    type Sketch = (Option<usize>, u16, u16, u64, u32, bool);

    fn sketches() -> impl Strategy<Value = Vec<Sketch>> {
        let sketch = (proptest::option::of(0usize..4), 0u16..6, 0u16..6, 4u64..9, 850u32..853, any::<bool>());
        proptest::collection::vec(sketch, 0..12)
    }

    fn drawn<'a>(sketches: &[Sketch], offers: &'a [ModelOffer; 4]) -> Vec<Candidate<'a>> {
        (1..)
            .zip(sketches)
            .map(|(number, &(offer, in_flight, running, free, reputation, draining))| Candidate {
                provider: id(number),
                wallet: None,
                offer: offer.map(|index| &offers[index]),
                load: Load { running, slots: 4, memory_free: Bytes::from_gib(free), ..Load::default() },
                in_flight,
                reputation: Permille::new(reputation),
                draining: draining && number % 3 == 0,
                strikes: 0,
            })
            .collect()
    }

    proptest! {
        #[test]
        fn each_is_eligible_or_refused_for_one_reason(sketches in sketches(), preferred in 0u64..12) {
            let offers = offers();
            let all = drawn(&sketches, &offers);
            let wish = Wish { preferred: Some(id(preferred)), ..wish() };
            let choice = choose(&all, &wish);
            let eligible = all.iter().filter(|one| examine(one, &wish).is_ok()).count();
            prop_assert_eq!(eligible + choice.refused.len(), all.len());
            prop_assert_eq!(choice.chosen.is_some(), eligible > 0);
            prop_assert!(choice.refused.iter().all(|(refused, _)| Some(*refused) != choice.chosen));
        }

        #[test]
        fn the_order_of_candidates_is_nothing(sketches in sketches(), by in 0usize..12) {
            let offers = offers();
            let mut all = drawn(&sketches, &offers);
            let before = choose(&all, &wish()).chosen;
            all.reverse();
            let middle = by.min(all.len());
            all.rotate_left(middle);
            prop_assert_eq!(choose(&all, &wish()).chosen, before);
        }

        #[test]
        fn who_comes_second_changes_nothing(sketches in sketches()) {
            let offers = offers();
            let mut all = drawn(&sketches, &offers);
            let chosen = choose(&all, &wish()).chosen;
            while all.len() > usize::from(chosen.is_some()) {
                let loser = all.iter().position(|one| Some(one.provider) != chosen).unwrap();
                all.swap_remove(loser);
                prop_assert_eq!(choose(&all, &wish()).chosen, chosen);
            }
        }
    }
}
