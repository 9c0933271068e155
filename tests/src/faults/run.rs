//! One run: a life with the faults of a plan, to its end and beyond.
//!
//! What a runtime would do, the run does: a request that failed is repeated; a sandbox that failed is
//! released and begun anew; after our process has died the next one takes over or releases what it left.
//! In the end the host is as it was, and what could be had without a fault was had with it.

mod recover;

use std::sync::Arc;
use std::time::Duration;

use resource_actors::{ResourceSystem, SandboxError, SandboxHandle};
use sandbox_model::lifecycle::LifecycleState;
use serde_json::Value;
use simulation::SimulatedHost;
use simulation::fault::{FaultPlan, Mode, PlannedFault, Site};
use tokio::task::LocalSet;
use tokio::time::Instant;

use recover::Heir;

use super::watch::{Break, Watch};
use super::{ground, picture};
use crate::lifecycles::{Act, Command, Lifecycle};

/// How often a request, a clean-up or a whole life is tried before it counts as hopeless.
const TRIES: usize = 5;

/// How often a life is begun: each crash and each failed sandbox costs one.
const LIVES: usize = 12;

/// What a life looks like without a fault: after each act, what exists and whether it was granted.
#[derive(Debug, Clone, Default)]
pub struct Reference {
    after: Vec<After>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct After {
    exists: Vec<String>,
    was_granted: bool,
}

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// The life.
    pub life: &'static str,
    /// The faults that were planned.
    pub plan: FaultPlan,
    /// The sites that were met, in order.
    pub sites: Vec<Site>,
    /// The faults that struck.
    pub struck: Vec<PlannedFault>,
    /// The rules that did not hold.
    pub breaks: Vec<Break>,
    /// Messages, calls and records that were looked at.
    pub events: u64,
    /// What it looked like, if it was to become a reference.
    pub reference: Reference,
}

impl Report {
    /// The command that runs this again.
    pub fn reproduce(&self) -> String {
        let (life, plan) = (self.life, &self.plan);
        format!("SIM_LIFECYCLE={life} SIM_FAULT='{plan}' cargo test -p lifecycle-tests --test faults one_run")
    }
}

/// Lives `life` with the faults of `plan`, and compares it with what it is without.
pub fn run(life: &Lifecycle, plan: &FaultPlan, reference: Option<&Reference>) -> Report {
    run_on(life, plan, reference, |_| ())
}

/// The same on a host that was changed before.
pub fn run_on(
    life: &Lifecycle,
    plan: &FaultPlan,
    reference: Option<&Reference>,
    change: impl FnOnce(&mut SimulatedHost),
) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime = runtime.expect("a current-thread runtime needs only memory");
    runtime.block_on(async {
        let mut host = ground(plan.clone());
        change(&mut host);
        let watch = Watch::new(&host, life.spec.id.clone());
        let heir = Heir::of(plan);
        let mut run = Run { life, host, watch, reference, seen: Reference::default(), next: 0, begun: 0, heir };
        run.go_on_to_the_end().await;
        run.report(plan.clone())
    })
}

struct Run<'a> {
    life: &'a Lifecycle,
    host: SimulatedHost,
    watch: Arc<Watch>,
    reference: Option<&'a Reference>,
    seen: Reference,
    /// The act that comes next.
    next: usize,
    /// How often the life was begun.
    begun: usize,
    /// What the process after a crash does.
    heir: Heir,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The life is over.
    Over,
    /// It was killed by a fault.
    Died,
    /// It was killed by an act of the life: the sandbox is brought back as one that has failed.
    Killed,
    /// It was killed by an act of the life: the sandbox is taken over.
    Left,
    /// The sandbox has failed and was released: the life begins anew.
    Anew,
}

impl Run<'_> {
    async fn go_on_to_the_end(&mut self) {
        let world = self.host.world.clone();
        let holders = Arc::strong_count(&world);
        let mut is_after = None;
        for _ in 0..LIVES * 3 {
            let faults = self.host.faults.clone();
            // A process is a `LocalSet`: dropped, it leaves nothing that still acts.
            let process = LocalSet::new();
            let end = process
                .run_until(async {
                    tokio::select! {
                        biased;
                        () = faults.died() => End::Died,
                        end = self.process(is_after) => end,
                    }
                })
                .await;
            drop(process);
            self.watch.leave();
            match end {
                End::Over => {
                    self.last_look(holders);
                    return;
                }
                End::Anew => {
                    self.next = 0;
                    is_after = None;
                }
                End::Died | End::Killed | End::Left => {
                    self.host.faults.restart();
                    if end == End::Left || (end == End::Died && self.heir == Heir::TakesOver) {
                        self.watch.take_over();
                    } else {
                        self.watch.restart(end == End::Died);
                    }
                    is_after = Some(end);
                }
            }
        }
        self.watch.found("L3", "it did not come to an end");
    }

    /// What one process of ours does.
    async fn process(&mut self, is_after: Option<End>) -> End {
        let system = self.host.process(Some(self.watch.clone()));
        match is_after {
            Some(End::Died) => {
                match self.heir {
                    Heir::Releases => self.release_what_was_left(&system).await,
                    Heir::TakesOver => self.take_over_what_was_left(&system).await,
                }
                self.next = 0;
                self.watch.restart(false);
                self.live(&system, None).await
            }
            Some(End::Left) => match self.take_over(&system).await {
                Some(sandbox) => self.live(&system, Some(sandbox)).await,
                None => {
                    self.next = 0;
                    self.live(&system, None).await
                }
            },
            Some(End::Killed) => match self.bring_back(&system).await {
                Ok(sandbox) => self.live(&system, Some(sandbox)).await,
                Err(error) => {
                    self.watch.found("F2", format!("not brought back: {error}"));
                    End::Over
                }
            },
            _ => self.live(&system, None).await,
        }
    }

    /// Lives from the next act on.
    async fn live(&mut self, system: &ResourceSystem, sandbox: Option<SandboxHandle>) -> End {
        let sandbox = match sandbox {
            Some(sandbox) => sandbox,
            None => match self.create(system).await {
                Some(sandbox) => sandbox,
                None => return End::Over,
            },
        };
        while let Some(act) = self.life.acts.get(self.next).cloned() {
            self.next += 1;
            match act {
                Act::Kill => {
                    self.put_down(true);
                    self.host.faults.die();
                    return End::Killed;
                }
                Act::TakeOver => {
                    self.host.faults.die();
                    return End::Left;
                }
                Act::Dies(peer) => {
                    self.host.faults.kill(&self.life.spec.id, peer);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    self.put_down(true);
                }
                Act::Ask(command) => {
                    if let Some(end) = self.ask(&sandbox, command).await {
                        return end;
                    }
                }
            }
        }
        End::Over
    }

    async fn create(&mut self, system: &ResourceSystem) -> Option<SandboxHandle> {
        self.begun += 1;
        self.host.faults.renew(&self.life.spec.id);
        if self.begun > LIVES {
            self.watch.found("L3", "the life was begun too often");
            return None;
        }
        for _ in 0..TRIES {
            match system.create_sandbox(self.life.spec.clone()).await {
                Ok(sandbox) => {
                    self.watch.follow(sandbox.clone());
                    return Some(sandbox);
                }
                Err(_) => {
                    let _ = system.cleanup_sandbox(&self.life.spec.id).await;
                }
            }
        }
        self.watch.found("F5", "the sandbox cannot be created");
        None
    }

    /// Asks, and asks again where that makes sense. An end is returned when the life does not go on.
    async fn ask(&mut self, sandbox: &SandboxHandle, command: Command) -> Option<End> {
        for attempt in 0..TRIES {
            if attempt == 2 && !self.counts() {
                // A party that is dead or silent stays so as long as this VM does.
                return Some(self.release(sandbox, End::Anew).await);
            }
            let before = (picture(&self.host.world, self.watch.baseline()), sandbox.status().state);
            let reply = self.once(sandbox, command.clone()).await;
            let state = sandbox.status().state;
            match reply {
                Reply::Granted(report) => {
                    if !is_clean(&report) {
                        // What is left is in the ledger and can be tried again.
                        continue;
                    }
                    if self.host.faults.take_again() {
                        let _ = self.once(sandbox, command).await;
                    }
                    self.put_down(true);
                    return None;
                }
                Reply::Unheard => {
                    self.put_down(sandbox.status().state != LifecycleState::Failed);
                    return None;
                }
                Reply::Stopped => return Some(self.release(sandbox, End::Over).await),
                Reply::Refused(error) => {
                    let fits = self.reference.is_some() || matches!(error, SandboxError::WrongState { .. });
                    if fits && self.may_be_refused() {
                        if state == LifecycleState::Failed && before.1 != LifecycleState::Failed {
                            // Its undo failed: what is left is in the ledger, for the clean-up.
                            return Some(self.release(sandbox, End::Anew).await);
                        }
                        self.put_down(false);
                        return None;
                    }
                    self.blames_the_fault(&error);
                    if self.reference.is_none() && command != Command::Cleanup {
                        // Nobody knows whether it would have been granted: whoever asks goes on.
                        self.put_down(false);
                        return None;
                    }
                    if state == LifecycleState::Failed && command != Command::Cleanup {
                        return Some(self.release(sandbox, End::Anew).await);
                    }
                    let now = picture(&self.host.world, self.watch.baseline());
                    // A clean-up that did not end has undone a part, and goes on from there.
                    let is_undo = matches!(command, Command::Cleanup | Command::Release(_));
                    if state == before.1 && now != before.0 && !is_undo && self.counts() {
                        self.watch.found("I22", difference(command.name(), &before.0, &now));
                    }
                }
            }
        }
        self.watch.found("L3", format!("{} was tried {TRIES} times", command.name()));
        Some(self.release(sandbox, End::Over).await)
    }

    /// Whether without a fault this act is refused as well.
    fn may_be_refused(&self) -> bool {
        match self.reference {
            None => true,
            Some(reference) => reference.after.get(self.next - 1).is_some_and(|after| !after.was_granted),
        }
    }

    /// One request: it is answered once, within its time.
    async fn once(&self, sandbox: &SandboxHandle, command: Command) -> Reply {
        let begun = Instant::now();
        let deadlines = &self.life.spec.config.runtime.deadlines;
        let patience = Duration::from_millis(deadlines.step_ms + 6 * deadlines.undo_ms);
        let name = command.name();
        self.host.faults.caller_waits();
        let mut reply = Box::pin(command.send(sandbox));
        let answer = tokio::select! {
            biased;
            answer = tokio::time::timeout(patience, &mut reply) => answer,
            moved = self.host.faults.caller_moves() => match moved {
                Mode::Stopped => {
                    let (answer, stopped) = futures::join!(tokio::time::timeout(patience, &mut reply), sandbox.stop());
                    if let Err(error) = &stopped && sandbox.status().state != LifecycleState::Failed {
                        self.watch.found("L2", format!("stop during {name}: {error}"));
                    }
                    if answer.is_err() {
                        self.watch.found("I17", format!("{name} was not answered"));
                    }
                    return Reply::Stopped;
                }
                Mode::GivenUp => {
                    drop(reply);
                    // Served in order: when this is answered, what was given up has ended.
                    let _ = sandbox.storages_for_sandbox(0).await;
                    return Reply::Unheard;
                }
                _ => {
                    sandbox.interrupt();
                    tokio::time::timeout(patience, &mut reply).await
                }
            },
        };
        let waited = begun.elapsed();
        match answer {
            Err(_) => {
                self.watch.found("I17", format!("{name} was not answered within {waited:?}"));
                Reply::Stopped
            }
            Ok(Ok(report)) => Reply::Granted(report),
            Ok(Err(error)) => Reply::Refused(error),
        }
    }

    /// Releases the sandbox, however often that takes.
    async fn release(&mut self, sandbox: &SandboxHandle, then: End) -> End {
        let mut last = String::new();
        for _ in 0..TRIES {
            match self.once(sandbox, Command::Cleanup).await {
                Reply::Granted(report) if is_clean(&report) => {
                    self.nothing_left("after a release");
                    self.watch.leave();
                    return then;
                }
                Reply::Granted(report) => last = report.to_string(),
                Reply::Refused(error) => last = error.to_string(),
                Reply::Unheard | Reply::Stopped => {}
            }
        }
        self.watch.found("L3", format!("the clean-up does not end: {last}"));
        End::Over
    }

    /// Compares what exists with what exists at this point without a fault.
    fn put_down(&mut self, was_granted: bool) {
        let after = After { exists: picture(&self.host.world, self.watch.baseline()), was_granted };
        match self.reference.and_then(|reference| reference.after.get(self.next - 1)) {
            Some(wanted) if wanted.exists != after.exists && self.counts() => {
                let act = self.life.acts[self.next - 1].to_string();
                self.watch.found("F5", difference(&act, &wanted.exists, &after.exists));
            }
            _ => {}
        }
        if self.reference.is_none() {
            self.seen.after.push(after);
        }
    }

    /// Whether what the world looks like in between says something: not when a VMM lied about what it
    /// has, or a party is dead.
    fn counts(&self) -> bool {
        // Nor when nobody hears of the VM's end.
        let is_loose = |fault: &PlannedFault| {
            matches!(fault.mode, Mode::Lie | Mode::Dies(_) | Mode::Silent(_)) || fault.site.method == "wait_exit"
        };
        !self.host.faults.has_struck(is_loose)
    }

    /// An injected error is what a failed step names as its cause.
    fn blames_the_fault(&self, error: &SandboxError) {
        let struck = self.host.faults.struck();
        let [only] = struck.as_slice() else { return };
        if !matches!(only.mode, Mode::Error | Mode::Resource(_)) {
            return;
        }
        let text = error.to_string();
        if !text.contains("injected") {
            self.watch.found("F1", format!("{only} struck, and the reply names another cause: {text}"));
        }
    }

    fn nothing_left(&self, when: &str) {
        let now = self.host.world.objects();
        if now != *self.watch.baseline() {
            let left = picture(&self.host.world, self.watch.baseline());
            self.watch.found("I11", format!("left {when}: {left:?}"));
        }
        if let Some(kept) = self.host.store.kept(&self.life.spec.id) {
            self.watch.found("I11", format!("left {when}: a ledger of {} bytes", kept.ledger.len()));
        }
    }

    fn last_look(&self, holders: usize) {
        self.nothing_left("at the end");
        // Whoever still acted would hold the world.
        let now = Arc::strong_count(&self.host.world);
        if now > holders {
            self.watch.found("I44", format!("{} holders of the world are left", now - holders));
        }
        for oddity in self.host.faults.oddities() {
            let rule = match &oddity {
                text if text.contains("deadline") => "I24",
                text if text.contains("on disk") => "I10",
                _ => "I23",
            };
            self.watch.found(rule, oddity);
        }
    }

    fn report(self, plan: FaultPlan) -> Report {
        Report {
            life: self.life.id,
            plan,
            sites: self.host.faults.visits().into_iter().map(Site::of_any).collect(),
            struck: self.host.faults.struck(),
            breaks: self.watch.breaks(),
            events: self.watch.events(),
            reference: self.seen,
        }
    }
}

enum Reply {
    Granted(Value),
    Refused(SandboxError),
    /// The caller gave up.
    Unheard,
    /// The caller stopped the sandbox.
    Stopped,
}

/// Whether a report of an undo names nothing that is left.
fn is_clean(reply: &Value) -> bool {
    let items = reply.get("items").and_then(Value::as_array);
    items.is_none_or(|items| items.iter().all(|item| item["result"].get("Err").is_none()))
}

fn difference(when: &str, wanted: &[String], found: &[String]) -> String {
    let lacks: Vec<_> = wanted.iter().filter(|object| !found.contains(object)).collect();
    let extra: Vec<_> = found.iter().filter(|object| !wanted.contains(object)).collect();
    let (before, after) = (wanted.len(), found.len());
    format!("{when}: {after} objects, not {before}; lacks {lacks:?}, has {extra:?}")
}
