//! Parties that are dead or answer nothing: status, stop and clean-up end within their time, whatever
//! combination of them it is.
#![expect(clippy::unwrap_used, reason = "a test ends where a helper meets what it did not expect")]

use std::time::Duration;

use lifecycle_tests::faults::{ground, picture, setting};
use lifecycle_tests::lifecycles::{Act, Command, Lifecycle, lifecycle};
use lifecycle_tests::simulated::in_virtual_time;
use resource_actors::SandboxHandle;
use sandbox_model::lifecycle::LifecycleState;
use simulation::SimulatedHost;
use simulation::fault::{FaultPlan, Peer};
use tokio::time::{Instant, timeout};

/// How a party is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Well,
    Dead,
    Silent,
}

/// Every combination of how the four parties are, but that in which all are well.
fn combinations() -> impl Iterator<Item = [Is; 4]> {
    let each = [Is::Well, Is::Dead, Is::Silent];
    (1..81_usize).map(move |n| [each[n % 3], each[n / 3 % 3], each[n / 9 % 3], each[n / 27 % 3]])
}

fn befall(host: &SimulatedHost, sandbox: &SandboxHandle, parties: [Is; 4]) {
    for (peer, is) in Peer::ALL.into_iter().zip(parties) {
        match is {
            Is::Well => {}
            Is::Dead => host.faults.kill(sandbox.id(), peer),
            Is::Silent => host.faults.silence(sandbox.id(), peer),
        }
    }
}

/// Up to the requests of the first container.
async fn running(host: &SimulatedHost, life: &Lifecycle) -> SandboxHandle {
    let system = host.process(None);
    let sandbox = system.create_sandbox(life.spec.clone()).await.unwrap();
    for act in life.acts.iter().take(7) {
        if let Act::Ask(command) = act {
            command.clone().send(&sandbox).await.unwrap();
        }
    }
    assert_eq!(sandbox.status().state, LifecycleState::Running);
    sandbox
}

#[test]
fn stop_and_clean_up_end_whoever_is_dead_or_silent() {
    let life = lifecycle("L12", &setting()).unwrap();
    let deadlines = life.spec.config.runtime.deadlines.clone();
    for parties in combinations() {
        in_virtual_time(|| async {
            let host = ground(FaultPlan::default());
            let baseline = host.world.objects();
            let sandbox = running(&host, &life).await;
            befall(&host, &sandbox, parties);
            let begun = Instant::now();
            let budget = Duration::from_millis(deadlines.step_ms + deadlines.undo_ms);
            // A VM that has died has made the sandbox failed, which cannot be stopped.
            let _ = timeout(budget, sandbox.stop()).await.unwrap_or_else(|_| panic!("{parties:?}: stop hangs"));
            assert!(begun.elapsed() <= Duration::from_secs(10), "{parties:?}: stop took {:?}", begun.elapsed());
            let budget = Duration::from_millis(3 * deadlines.undo_ms);
            let report =
                timeout(budget, sandbox.cleanup()).await.unwrap_or_else(|_| panic!("{parties:?}: clean-up hangs"));
            let report = report.unwrap();
            assert!(report.is_clean(), "{parties:?}: {report:#?}");
            assert_eq!(picture(&host.world, &baseline), Vec::<String>::new(), "{parties:?}");
        });
    }
}

#[test]
fn a_status_is_there_while_a_request_hangs_and_says_what_it_waits_for() {
    let life = lifecycle("L12", &setting()).unwrap();
    for peer in [Peer::Vmm, Peer::Agent] {
        in_virtual_time(|| async {
            let host = ground(FaultPlan::default());
            let sandbox = running(&host, &life).await;
            host.faults.silence(sandbox.id(), peer);
            let asked = sandbox.clone();
            let Some(Act::Ask(limits)) = life.acts.iter().filter(|act| act.to_string() == "limits").nth(1).cloned()
            else {
                panic!("the life has no limits")
            };
            assert!(matches!(limits, Command::Limits(..)));
            let request = tokio::task::spawn_local(async move { limits.send(&asked).await });
            tokio::time::sleep(Duration::from_secs(1)).await;
            let before = Instant::now();
            let step = sandbox.status().step.unwrap();
            assert_eq!((step.step.as_str(), before.elapsed()), ("UpdateLinuxResources", Duration::ZERO));
            assert!(step.waiting_for.contains("the VM's size"), "{step:?}");
            assert!(sandbox.dump()["cpu"].is_object());
            let begun = Instant::now();
            sandbox.stop().await.unwrap();
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
            let error = request.await.unwrap().unwrap_err();
            assert!(error.to_string().contains("interrupted"), "{error}");
            assert!(sandbox.cleanup().await.unwrap().is_clean());
        });
    }
}
