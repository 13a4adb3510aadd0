//! The tasks of a member's links: dialling until it goes well, and frames both ways until the link ends.

use std::time::Duration;

use ram_core::id::Epoch;
use ram_proto::frame::{Frame, Hello, Welcome};
use tokio::sync::mpsc;

use super::{Dialer, Peer, Said};
use crate::link::alive::Pulse;
use crate::link::greet::{self, Caller, Open};
use crate::link::{Link, LinkError};
use crate::worker::Side;

/// Where the frames of a link go.
pub(super) struct Ends {
    /// Its number: none has that of one before.
    pub(super) number: u64,
    pub(super) outbox: mpsc::Receiver<Frame>,
    pub(super) inbox: mpsc::Sender<(u64, Frame)>,
    pub(super) pulse: Pulse,
    pub(super) said: mpsc::WeakUnboundedSender<Said>,
}

/// Makes a link to a peer and greets it. One that refuses, or does not know this node yet, is asked again and again for
/// a while, for it may not have heard yet of an epoch; one that does not even listen is gone, after a few attempts.
pub(super) async fn dial(
    dialer: Dialer,
    (peer, hello, epoch, side): (Peer, Hello, Epoch, Side),
    said: mpsc::WeakUnboundedSender<Said>,
) {
    let (mut attempts, mut failures) = (0, 0);
    let outcome = loop {
        let outcome = match dialer(&peer).await {
            Ok(link) => greet::dial(link, hello.clone()).await,
            Err(error) => Err(error),
        };
        attempts += 1;
        failures += usize::from(!matches!(outcome, Err(LinkError::Refused(_) | LinkError::Unwelcome)));
        if outcome.is_ok() || attempts == ATTEMPTS_MAX || failures == FAILURES_MAX {
            break outcome;
        }
        tokio::time::sleep(ATTEMPT_EVERY).await;
    };
    tell(&said, Said::Dialled { epoch, side, outcome: outcome.map(Box::new) });
}

/// Carries the frames of a link that was dialled.
pub(super) async fn carry(open: Open<Box<dyn Link>>, ends: Ends) {
    let Ends { number, outbox, inbox, pulse, said } = ends;
    // Why it ended makes no odds: the epoch is over, and the group says what comes next.
    let _ = open.converse(outbox, inbox, |frame| (number, frame), pulse).await;
    tell(&said, Said::Closed { link: number });
}

/// Welcomes who has called, and carries the frames.
pub(super) async fn welcome(caller: Caller<Box<dyn Link>>, welcome: Welcome, ends: Ends) {
    match caller.welcome(welcome).await {
        Ok(open) => carry(open, ends).await,
        Err(_) => tell(&ends.said, Said::Closed { link: ends.number }),
    }
}

fn tell(said: &mpsc::WeakUnboundedSender<Said>, what: Said) {
    // Without a strong one the member has ended.
    if let Some(said) = said.upgrade() {
        let _ = said.send(what);
    }
}

/// Attempts for a link, with a pause between them: as long as it may take until all members have heard of an epoch.
const ATTEMPTS_MAX: usize = 100;
const ATTEMPT_EVERY: Duration = Duration::from_millis(50);
/// Links that could not be made, or broke before the greetings were over.
const FAILURES_MAX: usize = 4;
