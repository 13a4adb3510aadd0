//! The right to use a model: while somebody holds it, the model stays in memory.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use ram_core::job::{Failure, Job, Outcome};
use tokio::time::{Instant, timeout};

use super::answer::Asked;
use super::load::Load;
use super::pace::Paced;
use super::shelf::{Take, Wish};
use super::{Answer, Served, Step, Worker};
use crate::run::now;

/// Longest wait for models in use to give way, loads not counted: half of what a coordinator gives a node that must
/// load first.
pub(crate) const ROOM_WAIT_MAX: Duration = Duration::from_secs(60);

/// A model in memory that stays there.
#[derive(Debug)]
pub(super) struct Lease {
    served: Arc<Served>, // dropped before the hold, so that nobody unloads what is still used
    _hold: Hold,
}

/// A wish for a model, which keeps it from being unloaded once it is there.
#[derive(Debug)]
struct Hold {
    worker: Worker,
    wish: Wish,
}

impl Worker {
    /// Waits until the model is in memory, loading it if nobody else does. The load goes on when the wait is given up.
    ///
    /// # Errors
    /// [`Failure::OutOfMemory`] when models in use leave no room for [`ROOM_WAIT_MAX`]; that of a load that failed.
    pub(super) async fn lease(&self, index: usize) -> Result<Lease, Failure> {
        let hold = Hold::new(self, index);
        let mut changes = self.changes();
        let mut patience = ROOM_WAIT_MAX;
        loop {
            changes.mark_unchanged(); // before the look, so that no change between both is missed
            let taken = self.memory().shelf.take(hold.wish, now());
            match taken {
                Take::Ready => {
                    let served = self.memory().served.get(&index).cloned();
                    return served.map(|served| Lease { served, _hold: hold }).ok_or(Failure::Internal);
                }
                Take::Failed(failure) => return Err(failure),
                Take::Load { unload, granted } => {
                    let load = Load::new(self, index, unload, granted);
                    tokio::task::spawn_blocking(move || drop(load.run())); // it tells who waits
                }
                Take::Wait => {}
                Take::NoRoom => {
                    let since = Instant::now();
                    let changed = timeout(patience, changes.changed()).await;
                    changed.map_err(|_| Failure::OutOfMemory)?.map_err(|_| Failure::Internal)?;
                    patience = patience.saturating_sub(since.elapsed());
                    continue;
                }
            }
            changes.changed().await.map_err(|_| Failure::Internal)?;
        }
    }
}

impl Hold {
    fn new(worker: &Worker, index: usize) -> Self {
        let wish = worker.memory().shelf.wish(index);
        Self { worker: worker.clone(), wish }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.worker.memory().shelf.release(self.wish, now());
        self.worker.changed();
    }
}

impl Lease {
    /// Begins an answer. Writes and encodes the prompt on a thread where that may take long.
    ///
    /// # Errors
    /// [`Failure`] when the engine cannot take it now.
    pub(super) async fn answer(self, job: Job) -> Result<Answer, Failure> {
        // The lease goes along: who hangs up now must not have the model unloaded under the prompt.
        let submitted = tokio::task::spawn_blocking(move || {
            let Asked { request, listens } = Asked::new(job, self.engine.info().call_format);
            let generation = self.engine.submit(request)?;
            let start = generation.answer_start();
            Ok(Answer::new(Paced::new(generation, self), start, listens))
        });
        submitted.await.unwrap_or(Err(Failure::Internal))
    }
}

impl Deref for Lease {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.served
    }
}

/// An answer that may have to wait for its model. Dropping it cancels it.
pub struct PendingAnswer(Stage);

enum Stage {
    Opening(BoxFuture<'static, Result<Answer, Failure>>),
    Open(Box<Answer>),
    Ended,
}

impl PendingAnswer {
    pub(super) fn new(opening: impl Future<Output = Result<Answer, Failure>> + Send + 'static) -> Self {
        Self(Stage::Opening(opening.boxed()))
    }

    /// The next step; `None` after the end. Cancel-safe.
    pub async fn next(&mut self) -> Option<Step> {
        loop {
            match &mut self.0 {
                Stage::Opening(opening) => match opening.await {
                    Ok(answer) => self.0 = Stage::Open(Box::new(answer)),
                    Err(failure) => {
                        self.0 = Stage::Ended;
                        return Some(Step::End(Outcome::Failed { failure }));
                    }
                },
                Stage::Open(answer) => return answer.next().await,
                Stage::Ended => return None,
            }
        }
    }
}

impl fmt::Debug for PendingAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Stage::Opening(_) => "PendingAnswer(Opening)",
            Stage::Open(_) => "PendingAnswer(Open)",
            Stage::Ended => "PendingAnswer(Ended)",
        })
    }
}
