//! Lets the faults of a plan happen: one interceptor for all ports, and the word on every record.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use resource_actors::system::Intercept;
use sandbox_model::lifecycle::ActorName;
use sandbox_model::port::{Interceptor, PortCall};
use sandbox_model::{ErrorKind, Instant, PortError, PortResult, SandboxId};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::sleep_until;

use super::modes::{lie, silences};
use super::{FaultPlan, Mode, Peer, PlannedFault, Site};

/// How long before a deadline a slow party answers, and how long after it a late one acts.
const EPSILON: Duration = Duration::from_millis(1);
/// When even an actor with a grace has given up.
const AFTER_GRACE: Duration = Duration::from_millis(300);
/// A deadline further off than any step's belongs to a call that waits for an event.
const WAITS_FOR_AN_EVENT: Duration = Duration::from_secs(3600);

/// Told when a party of a sandbox dies.
pub type PeerDeath = Box<dyn Fn(&SandboxId, Peer) + Send + Sync>;

/// Interceptor of all ports, and judge of all records, of the sandboxes of one simulation.
#[derive(Default)]
pub struct Injector {
    state: Mutex<State>,
    down: watch::Sender<bool>,
    /// What the caller of the command under way does of a sudden.
    caller: watch::Sender<Option<Mode>>,
    on_death: Mutex<Option<PeerDeath>>,
}

/// The calls of one actor through one port.
type Line = (SandboxId, ActorName, String);

#[derive(Default)]
struct State {
    waiting: Vec<PlannedFault>,
    counts: BTreeMap<(Line, String), u32>,
    visits: Vec<Site>,
    struck: Vec<PlannedFault>,
    dead: BTreeSet<(SandboxId, Peer)>,
    silent: BTreeSet<(SandboxId, Peer)>,
    /// Calls that will happen late: what follows on their line waits for them.
    late: BTreeMap<Line, watch::Receiver<bool>>,
    again: bool,
    /// Calls of each sandbox that change what devices its VM has, under way now.
    hotplugs: BTreeMap<SandboxId, u32>,
    oddities: Vec<String>,
}

impl fmt::Debug for Injector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Injector({:?})", self.state().waiting)
    }
}

/// What becomes of a record that is about to be written.
#[derive(Debug)]
pub(crate) enum Word {
    /// It is written.
    Whole,
    /// It is not.
    Refused(PortError),
    /// Half of it is written, and our process dies.
    Torn,
    /// It is written, and our process dies.
    Last,
}

impl Injector {
    /// Lets the faults of `plan` happen, each once.
    pub fn new(plan: FaultPlan) -> Arc<Self> {
        let injector = Self::default();
        injector.state().waiting = plan.faults;
        Arc::new(injector)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// More faults, from now on.
    pub fn add(&self, plan: FaultPlan) {
        self.state().waiting.extend(plan.faults);
    }

    /// No more faults: those that have not struck are forgotten, parties that fell silent speak again.
    /// The dead stay dead.
    pub fn relent(&self) {
        let mut state = self.state();
        state.waiting.clear();
        state.silent.clear();
    }

    /// Who lets a party die in the simulated world.
    pub fn on_death(&self, hook: PeerDeath) {
        *self.on_death.lock().unwrap_or_else(PoisonError::into_inner) = Some(hook);
    }

    /// The sites met so far, in order.
    pub fn visits(&self) -> Vec<Site> {
        self.state().visits.clone()
    }

    /// The faults that have not struck.
    pub fn waiting(&self) -> Vec<PlannedFault> {
        self.state().waiting.clone()
    }

    /// The faults that have struck.
    pub fn struck(&self) -> Vec<PlannedFault> {
        self.state().struck.clone()
    }

    /// Whether a fault like this has struck.
    pub fn has_struck(&self, like: impl Fn(&PlannedFault) -> bool) -> bool {
        self.state().struck.iter().any(like)
    }

    /// Whether the command that just ended shall be sent again ([`Mode::Duplicate`]); once.
    pub fn take_again(&self) -> bool {
        std::mem::take(&mut self.state().again)
    }

    /// Resolves when the caller of the command under way interrupts, stops or gives up.
    pub async fn caller_moves(&self) -> Mode {
        let mut caller = self.caller.subscribe();
        let moved = caller.wait_for(Option::is_some).await.map(|mode| *mode);
        self.caller.send_replace(None);
        // The sender is ours: it cannot be gone.
        moved.ok().flatten().unwrap_or(Mode::Interrupted)
    }

    /// Whether our process has died.
    pub fn is_down(&self) -> bool {
        *self.down.borrow()
    }

    /// Resolves when our process dies. Whoever waits then drops everything that belongs to it.
    pub async fn died(&self) {
        let mut down = self.down.subscribe();
        // The sender is ours: it cannot be gone.
        let _ = down.wait_for(|down| *down).await;
    }

    /// Lets our process die: from now on no call happens and no record is written.
    pub fn die(&self) {
        self.down.send_replace(true);
    }

    /// A new process takes the place of the dead one. Sites are counted on.
    pub fn restart(&self) {
        let mut state = self.state();
        state.late.clear();
        state.again = false;
        drop(state);
        self.down.send_replace(false);
    }

    /// Lets a party of `sandbox` die.
    pub fn kill(&self, sandbox: &SandboxId, peer: Peer) {
        self.state().dead.insert((sandbox.clone(), peer));
        if let Some(hook) = &*self.on_death.lock().unwrap_or_else(PoisonError::into_inner) {
            hook(sandbox, peer);
        }
    }

    /// A sandbox begins anew: its parties are new ones.
    pub fn renew(&self, sandbox: &SandboxId) {
        let mut state = self.state();
        state.dead.retain(|(of, _)| of != sandbox);
        state.silent.retain(|(of, _)| of != sandbox);
    }

    /// The caller of the command under way has done nothing of a sudden yet.
    pub fn caller_waits(&self) {
        self.caller.send_replace(None);
    }

    /// Lets a party of `sandbox` fall silent.
    pub fn silence(&self, sandbox: &SandboxId, peer: Peer) {
        self.state().silent.insert((sandbox.clone(), peer));
    }

    /// Puts this around every port of a system.
    pub fn intercept(self: &Arc<Self>) -> Intercept {
        let injector = self.clone();
        Arc::new(move |sandbox, actor, _| {
            Some(Arc::new(Tap { injector: injector.clone(), sandbox: sandbox.clone(), actor }))
        })
    }

    /// Counts a site and says what happens there.
    fn meet(&self, line: &Line, method: &str) -> Option<Mode> {
        let mut state = self.state();
        let count = state.counts.entry((line.clone(), method.to_owned())).or_default();
        *count += 1;
        let nth = *count;
        let (sandbox, actor, port) = line.clone();
        let site = Site { sandbox: Some(sandbox), actor, port, method: method.to_owned(), nth };
        let found = state.waiting.iter().position(|fault| fault.site.covers(&site));
        let struck = found.map(|place| PlannedFault { site: site.clone(), mode: state.waiting.remove(place).mode });
        state.visits.push(site);
        state.struck.extend(struck.clone());
        struck.map(|fault| fault.mode)
    }

    /// Judges a record of the ledger or store.
    pub(crate) fn word(&self, sandbox: &SandboxId, actor: ActorName, port: &str, method: &str) -> Word {
        let gone = || PortError::new(ErrorKind::PeerGone, method, port, "injected: our process is dead");
        if self.is_down() {
            return Word::Refused(gone());
        }
        let Some(mode) = self.meet(&(sandbox.clone(), actor, port.to_owned()), method) else { return Word::Whole };
        match mode {
            Mode::Error => Word::Refused(PortError::new(ErrorKind::Refused, method, port, "injected: refused")),
            Mode::Resource(errno) => Word::Refused(errno.refuse(method, port)),
            Mode::CrashBefore => {
                self.die();
                Word::Refused(gone())
            }
            Mode::CrashAfter => {
                self.die();
                Word::Last
            }
            Mode::Partial => {
                self.die();
                Word::Torn
            }
            Mode::Dies(peer) => {
                self.kill(sandbox, peer);
                Word::Whole
            }
            Mode::Silent(peer) => {
                self.silence(sandbox, peer);
                Word::Whole
            }
            Mode::Duplicate => {
                self.state().again = true;
                Word::Whole
            }
            Mode::Interrupted | Mode::Stopped | Mode::GivenUp => {
                self.caller.send_replace(Some(mode));
                Word::Whole
            }
            // A record is a system call of microseconds: it neither hangs nor lies.
            Mode::Hang | Mode::HangAfter | Mode::Slow | Mode::Late | Mode::Malformed | Mode::Lie => Word::Whole,
        }
    }

    /// What was against the rules in how calls were made: two hotplugs at once, a wait without an end.
    pub fn oddities(&self) -> Vec<String> {
        self.state().oddities.clone()
    }

    /// Notes something that is against the rules.
    pub(crate) fn note(&self, oddity: String) {
        self.state().oddities.push(oddity);
    }

    /// Notes that a call begins, until the guard is gone.
    fn begin(self: &Arc<Self>, line: &Line, call: &PortCall) -> Option<Hotplug> {
        let waits = call.deadline.saturating_duration_since(Instant::now());
        let mut state = self.state();
        if waits > WAITS_FOR_AN_EVENT && !matches!(call.method, "wait_exit" | "oom_event") {
            state.oddities.push(format!("{}.{} has no deadline within an hour", call.port, call.method));
        }
        if call.port != "hypervisor" || !matches!(call.method, "add_device" | "remove_device") {
            return None;
        }
        let under_way = state.hotplugs.entry(line.0.clone()).or_default();
        *under_way += 1;
        if *under_way > 1 {
            state.oddities.push(format!("{} begins while another hotplug is under way", call.method));
        }
        Some(Hotplug { injector: self.clone(), sandbox: line.0.clone() })
    }

    /// Waits until what was late on this line has happened.
    async fn in_order(&self, line: &Line) {
        let late = self.state().late.get(line).cloned();
        if let Some(mut late) = late {
            let _ = late.wait_for(|done| *done).await;
        }
    }

    /// Lets a call happen after its caller has given up.
    fn postpone(&self, line: &Line, deadline: Instant, inner: BoxFuture<'static, PortResult<Value>>) {
        let (done, seen) = watch::channel(false);
        self.state().late.insert(line.clone(), seen);
        let mut down = self.down.subscribe();
        tokio::task::spawn_local(async move {
            sleep_until(deadline + EPSILON).await;
            if !*down.borrow_and_update() {
                let _ = inner.await;
            }
            done.send_replace(true);
        });
    }

    /// What a dead or silent party does to a call: `None` is nothing.
    async fn absent(&self, sandbox: &SandboxId, call: &PortCall) -> Option<PortError> {
        let by = |set: &BTreeSet<(SandboxId, Peer)>| {
            let of_it = set.iter().filter(|(of, _)| of == sandbox);
            of_it.map(|(_, peer)| *peer).find(|peer| silences(*peer, call.port, call.method))
        };
        let (dead, silent) = {
            let state = self.state();
            (by(&state.dead), by(&state.silent))
        };
        match (dead, silent) {
            // The world answers for the death of a process of the host's.
            (Some(peer @ (Peer::Agent | Peer::VsockDaemon)), _) if call.port == "guest-agent" => {
                let cause = format!("injected: {} is dead", peer.name());
                Some(PortError::new(ErrorKind::PeerGone, call.method, call.port, cause))
            }
            (_, Some(_)) => std::future::pending().await,
            _ => None,
        }
    }
}

/// A hotplug under way.
struct Hotplug {
    injector: Arc<Injector>,
    sandbox: SandboxId,
}

impl Drop for Hotplug {
    fn drop(&mut self) {
        if let Some(under_way) = self.injector.state().hotplugs.get_mut(&self.sandbox) {
            *under_way -= 1;
        }
    }
}

/// Around the ports of one actor.
#[derive(Debug)]
struct Tap {
    injector: Arc<Injector>,
    sandbox: SandboxId,
    actor: ActorName,
}

impl Interceptor for Tap {
    fn around<'a>(
        &'a self,
        call: PortCall,
        inner: BoxFuture<'static, PortResult<Value>>,
    ) -> BoxFuture<'a, PortResult<Value>> {
        let line = (self.sandbox.clone(), self.actor, call.port.to_owned());
        let is_down = self.injector.is_down();
        let mode = if is_down { None } else { self.injector.meet(&line, call.method) };
        Box::pin(async move {
            if is_down {
                return std::future::pending().await;
            }
            let _under_way = self.injector.begin(&line, &call);
            self.injector.in_order(&line).await;
            self.happen(mode, &line, call, inner).await
        })
    }
}

impl Tap {
    async fn happen(
        &self,
        mode: Option<Mode>,
        line: &Line,
        call: PortCall,
        inner: BoxFuture<'static, PortResult<Value>>,
    ) -> PortResult<Value> {
        let injector = &self.injector;
        let error = |kind, cause: &str| PortError::new(kind, call.method, call.port, format!("injected: {cause}"));
        let waits = call.deadline.saturating_duration_since(Instant::now()) > WAITS_FOR_AN_EVENT;
        match mode {
            Some(Mode::Error) => return Err(error(ErrorKind::Refused, "refused")),
            Some(Mode::Resource(errno)) => return Err(errno.refuse(call.method, call.port)),
            Some(Mode::Hang) => return std::future::pending().await,
            Some(Mode::CrashBefore) => {
                injector.die();
                return std::future::pending().await;
            }
            Some(Mode::Lie) => {
                let unlikely = || error(ErrorKind::Protocol, "an answer that makes no sense");
                return lie(call.port, call.method).ok_or_else(unlikely);
            }
            Some(Mode::Late) if !waits => {
                injector.postpone(line, call.deadline, inner);
                sleep_until(call.deadline + AFTER_GRACE).await;
                return Err(error(ErrorKind::TimedOut, "answered after its deadline").doubtful());
            }
            Some(Mode::Slow) if !waits => sleep_until(call.deadline - EPSILON).await,
            Some(Mode::Dies(peer)) => injector.kill(&self.sandbox, peer),
            Some(Mode::Silent(peer)) => injector.silence(&self.sandbox, peer),
            Some(Mode::Duplicate) => injector.state().again = true,
            Some(mode @ (Mode::Interrupted | Mode::Stopped)) => {
                injector.caller.send_replace(Some(mode));
                return std::future::pending().await;
            }
            Some(mode @ Mode::GivenUp) => {
                injector.caller.send_replace(Some(mode));
            }
            _ => {}
        }
        if let Some(gone) = injector.absent(&self.sandbox, &call).await {
            return Err(gone);
        }
        if injector.is_down() {
            return std::future::pending().await;
        }
        let answer = inner.await;
        match mode {
            Some(Mode::HangAfter) => std::future::pending().await,
            Some(Mode::CrashAfter) => {
                injector.die();
                std::future::pending().await
            }
            Some(Mode::Malformed) => Err(error(ErrorKind::Protocol, "garbage instead of an answer").doubtful()),
            Some(Mode::Partial) => Err(error(ErrorKind::Refused, "stopped half way").doubtful()),
            _ => answer,
        }
    }
}
