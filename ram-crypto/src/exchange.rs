//! The client's side of a sealed exchange, in its order: nothing is sealed to a node whose word was not checked, and
//! nothing is read of an answer that was not asked for.
//!
//! ```text
//! Offer -- check(&Trust) --> Chosen -- seal(prompt) --> (Request, Waiting) -- hear(nonce) --> Hearing
//!                               `----- seal_v1(prompt) -> (SealedPrompt, envelope::Waiting) -- open(answer) -->
//! ```
//!
//! The coordinator names the provider, and could name one of its own making: it runs the network, and any key of its
//! can sign. What a client gets from the check is that the end-to-end key is the one that this *node* stated, to this
//! coordinator, on this network; whoever has met the node before [pins](Trust::pinned) it, and is safe from a swap.
//!
//! Steps out of order do not compile:
//!
//! ```compile_fail
//! # use ram_crypto::exchange::Offer;
//! # fn example(offer: Offer) {
//! let sealed = offer.seal(b"a prompt"); // nobody has checked whose key that is
//! # }
//! ```

use crate::envelope::{self, SealedPrompt};
use crate::hpke::{self, Binding, Request};
use crate::identity::Fingerprint;
use crate::seal::SealError;
use crate::statement::{Statement, StatementError};

pub use crate::hpke::{Hearing, Waiting};

/// The provider that a coordinator has chosen for a job, in its own words and the node's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The job, as the coordinator calls it.
    pub job: [u8; 16],
    /// The model that was asked for.
    pub model: String,
    /// What the node said of itself when it joined the coordinator.
    pub statement: Statement,
    /// Its signature.
    pub signature: [u8; 64],
}

/// What a client holds an offer against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trust<'a> {
    /// Chain id of the network that it means to use.
    pub network: u64,
    /// The coordinator that it talks to, by the name which that one gives itself.
    pub coordinator: &'a str,
    /// The node key that it must be, for who has met it before.
    pub pinned: Option<&'a [u8; 32]>,
    /// The time, in UTC milliseconds.
    pub now_ms: u64,
    /// How long ago a node may have joined, in milliseconds: a statement that is older may name a key that the node
    /// uses no more.
    pub age_max_ms: u64,
}

/// A provider whose word was checked.
#[derive(Debug)]
pub struct Chosen {
    offer: Offer,
}

/// Why an offer was not taken, or a prompt not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// The coordinator's fault: the node's word does not hold, or was given to others.
    #[error("the provider's statement does not hold")]
    Statement(#[from] StatementError),
    /// The coordinator's choice: not the node that was pinned.
    #[error("the provider is not the one that was pinned")]
    OtherNode,
    /// It could not be sealed.
    #[error("the prompt was not sealed")]
    Seal(#[from] SealError),
}

impl Offer {
    /// Checks that the end-to-end key is the node's own, and the node one that the client accepts.
    ///
    /// # Errors
    /// [`ExchangeError::Statement`], [`ExchangeError::OtherNode`].
    pub fn check(self, trust: &Trust<'_>) -> Result<Chosen, ExchangeError> {
        let Statement { network, coordinator, node_key, expires_ms, .. } = &self.statement;
        if *network != trust.network {
            let (stated, expected) = (*network, trust.network);
            return Err(StatementError::WrongNetwork { stated, expected }.into());
        }
        if coordinator != trust.coordinator {
            return Err(StatementError::WrongCoordinator.into());
        }
        if trust.pinned.is_some_and(|pinned| pinned != node_key) {
            return Err(ExchangeError::OtherNode);
        }
        if expires_ms.saturating_add(trust.age_max_ms) <= trust.now_ms {
            return Err(StatementError::Expired.into());
        }
        self.statement.verify_signature(&self.signature)?;
        Ok(Chosen { offer: self })
    }
}

impl Chosen {
    /// What the node says of itself.
    #[must_use]
    pub const fn statement(&self) -> &Statement {
        &self.offer.statement
    }

    /// What a person compares.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.offer.statement.node_key, &self.offer.statement.e2e_key)
    }

    /// Seals the prompt, once: another one is another job.
    ///
    /// # Errors
    /// [`ExchangeError::Seal`].
    pub fn seal(self, prompt: &[u8]) -> Result<(Request, Waiting), ExchangeError> {
        let Offer { job, model, statement, .. } = &self.offer;
        let binding = Binding { job: *job, provider: statement.node_key, model };
        Ok(hpke::seal(&statement.e2e_key, binding, prompt)?)
    }

    /// Seals the prompt in version 1, for providers that know no other.
    ///
    /// # Errors
    /// [`ExchangeError::Seal`].
    pub fn seal_v1(self, prompt: &[u8]) -> Result<(SealedPrompt, envelope::Waiting), ExchangeError> {
        Ok(envelope::seal(&self.offer.statement.e2e_key, prompt)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::NodeIdentity;

    const TRUST: Trust<'_> =
        Trust { network: 84_530, coordinator: "c", pinned: None, now_ms: 1_000, age_max_ms: 0 };

    fn offer() -> (NodeIdentity, Offer) {
        let node = NodeIdentity::from_seeds([1; 32], [2; 32]);
        let statement = Statement {
            network: 84_530,
            coordinator: "c".to_owned(),
            nonce: [3; 32],
            node_key: node.node_public(),
            e2e_key: node.e2e_public(),
            wallet: None,
            name: "n".to_owned(),
            expires_ms: 2_000,
        };
        let signature = statement.sign(&node);
        (node, Offer { job: [4; 16], model: "m".to_owned(), statement, signature })
    }

    #[test]
    fn an_exchange_goes_its_way() {
        let (node, offer) = offer();
        let pinned = node.node_public();
        let chosen = offer.clone().check(&Trust { pinned: Some(&pinned), ..TRUST }).unwrap();
        assert_eq!(chosen.fingerprint(), node.fingerprint());
        let (request, waiting) = chosen.seal(b"a prompt").unwrap();
        let binding = Binding { job: [4; 16], provider: pinned, model: "m" };
        let (prompt, answering) = hpke::open(&node, binding, &request).unwrap();
        assert_eq!(**prompt, *b"a prompt");
        let mut hearing = waiting.hear(answering.nonce());
        assert_eq!(**hearing.last(&answering.last(b"an answer").unwrap()).unwrap(), *b"an answer");

        let (prompt, waiting) = offer.check(&TRUST).unwrap().seal_v1(b"a prompt").unwrap();
        let (_, answering) = envelope::open(&node, &prompt).unwrap();
        assert_eq!(**waiting.open(&answering.seal(b"an answer").unwrap()).unwrap(), *b"an answer");
    }

    #[test]
    fn an_offer_that_does_not_hold_is_refused() {
        let refused = |change: &dyn Fn(&mut Offer), trust: Trust<'_>, expected: ExchangeError| {
            let (_, mut offer) = offer();
            change(&mut offer);
            assert_eq!(offer.check(&trust).unwrap_err(), expected);
        };
        let unchanged = |_: &mut Offer| {};
        let wrong = StatementError::WrongNetwork { stated: 84_530, expected: 8_453 };
        refused(&unchanged, Trust { network: 8_453, ..TRUST }, wrong.into());
        refused(&unchanged, Trust { coordinator: "d", ..TRUST }, StatementError::WrongCoordinator.into());
        refused(&unchanged, Trust { now_ms: 2_000, ..TRUST }, StatementError::Expired.into());
        refused(&unchanged, Trust { pinned: Some(&[9; 32]), ..TRUST }, ExchangeError::OtherNode);
        let bad = ExchangeError::from(StatementError::BadSignature);
        let mallory = NodeIdentity::from_seeds([8; 32], [8; 32]);
        refused(&|offer| offer.statement.e2e_key = mallory.e2e_public(), TRUST, bad);
        refused(&|offer| offer.signature[0] ^= 1, TRUST, bad);
        refused(&|offer| offer.statement.e2e_key = [0; 32], TRUST, StatementError::WeakE2eKey.into());
    }

    #[test]
    fn a_node_that_joined_long_ago_is_taken_for_as_long_as_the_client_says() {
        let at = |now_ms| offer().1.check(&Trust { now_ms, age_max_ms: 500, ..TRUST }).map(drop);
        assert_eq!(at(2_499), Ok(()));
        assert_eq!(at(2_500), Err(StatementError::Expired.into()));
    }
}
