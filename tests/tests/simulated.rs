//! The real actors on simulated ports: a whole life, its failures, its replay.

use std::sync::Arc;

use lifecycle_tests::simulated::{
    add_container, boot, container, create, in_virtual_time, lifecycle, resources, system,
};
use resource_actors::trace::{ChannelSink, replay};
use resource_actors::{Cause, SandboxError};
use sandbox_model::lifecycle::LifecycleState;
use sandbox_model::request::{ResourceUpdate, VolumesRequest};
use simulation::World;

#[test]
fn a_lifecycle_leaves_the_world_as_it_was() {
    in_virtual_time(|| async {
        let world = Arc::new(World::new());
        let system = system(&world, None, None);
        let sandbox = create(&system, "life").await.unwrap();
        boot(&sandbox).await.unwrap();
        assert_eq!(sandbox.status().state, LifecycleState::Running);
        add_container(&sandbox, "one").await.unwrap();
        let with_one = world.list();
        add_container(&sandbox, "two").await.unwrap();
        let report = sandbox.release_container(container("two")).await.unwrap();
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(world.list(), with_one, "a container gives back what it held and nothing else");
        sandbox.stop().await.unwrap();
        let report = sandbox.cleanup().await.unwrap();
        assert!(report.is_clean(), "{report:#?}");
        assert_eq!(world.list(), Vec::<String>::new());
        assert_eq!(sandbox.status().state, LifecycleState::Released);
        assert!(sandbox.cleanup().await.unwrap().items.is_empty(), "twice is as good as once");
        assert!(system.sandboxes().is_empty());
    });
}

#[test]
fn cleanup_leads_out_of_every_state() {
    for steps in 0..5 {
        in_virtual_time(|| async {
            let world = Arc::new(World::new());
            let system = system(&world, None, None);
            let sandbox = create(&system, "any").await.unwrap();
            if steps > 0 {
                sandbox.prepare_before_start_vm(resources()).await.unwrap();
            }
            if steps > 1 {
                sandbox.start_vm().await.unwrap();
            }
            if steps > 2 {
                sandbox.setup_after_start_vm().await.unwrap();
                add_container(&sandbox, "one").await.unwrap();
            }
            if steps > 3 {
                sandbox.stop().await.unwrap();
            }
            let report = sandbox.cleanup().await.unwrap();
            assert!(report.is_clean(), "after {steps}: {report:#?}");
            assert_eq!(world.list(), Vec::<String>::new(), "after {steps}");
        });
    }
}

#[test]
fn a_message_that_does_not_fit_is_refused_with_both_named() {
    in_virtual_time(|| async {
        let world = Arc::new(World::new());
        let system = system(&world, None, None);
        let sandbox = create(&system, "early").await.unwrap();
        let error = sandbox.start_vm().await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("StartVm") && text.contains("created") && text.contains("prepared"), "{text}");
        let again = create(&system, "early").await.unwrap_err();
        assert!(matches!(again, SandboxError::Exists { .. }), "{again}");
    });
}

#[test]
fn a_volume_that_fails_takes_those_before_it_along_and_may_be_retried() {
    in_virtual_time(|| async {
        let world = Arc::new(World::new());
        let system = system(&world, None, None);
        let sandbox = create(&system, "half").await.unwrap();
        boot(&sandbox).await.unwrap();
        let before = world.list();
        let good = lifecycle_tests::simulated::bind("/srv/a", "/a", &["rbind"]);
        let bad = lifecycle_tests::simulated::bind("/srv/b", "relative", &["rbind"]);
        let request = |mounts| VolumesRequest { container: container("c"), mounts };
        let error = sandbox.set_up_volumes(request(vec![good.clone(), bad])).await.unwrap_err();
        let SandboxError::Step(failure) = &error else { panic!("{error}") };
        assert!(matches!(failure.cause, Cause::Invalid { .. }), "{error}");
        assert!(failure.undo.is_clean() && !failure.undo.items.is_empty(), "{failure:?}");
        assert_eq!(world.list(), before);
        assert_eq!(sandbox.status().state, LifecycleState::Running);
        assert_eq!(sandbox.set_up_volumes(request(vec![good])).await.unwrap().mounts.len(), 1);
    });
}

#[test]
fn vcpus_and_memory_follow_the_containers() {
    in_virtual_time(|| async {
        let world = Arc::new(World::new());
        let system = system(&world, None, None);
        let sandbox = create(&system, "size").await.unwrap();
        boot(&sandbox).await.unwrap();
        let ask = |name: &str, quota, memory, update| {
            let limits = lifecycle_tests::simulated::limits(quota, memory);
            sandbox.update_linux_resources(container(name), Some(limits), update)
        };
        let one = ask("one", 100_000, 128 << 20, ResourceUpdate::Add).await.unwrap();
        assert_eq!((one.vcpus, one.memory_mib), (2, 2048 + 128));
        let two = ask("two", 200_000, 1, ResourceUpdate::Add).await.unwrap();
        assert_eq!((two.vcpus, two.memory_mib), (4, 2048 + 256));
        let cpu = two.for_agent.as_ref().and_then(|limits| limits.cpu().clone()).unwrap();
        assert_eq!((cpu.cpus(), cpu.quota()), (&None, Some(200_000)));
        let error = ask("three", -1, 64 << 30, ResourceUpdate::Add).await.unwrap_err();
        assert!(error.to_string().contains("default_maxmemory"), "{error}");
        let again = ask("one", 100_000, 128 << 20, ResourceUpdate::Update).await.unwrap();
        assert_eq!(again.memory_mib, 2048 + 256, "a refused container has left no share");
    });
}

#[test]
fn a_trace_replays_with_the_same_replies_to_the_same_state() {
    let (sink, heard) = ChannelSink::new();
    in_virtual_time(|| async {
        let world = Arc::new(World::new());
        let system = system(&world, Some(sink.clone()), None);
        let sandbox = create(&system, "told").await.unwrap();
        lifecycle(&sandbox).await.unwrap();
        assert!(sandbox.cleanup().await.unwrap().is_clean());
    });
    let mut events: Vec<_> = heard.try_iter().collect();
    events.sort_by_key(|event| event.place().map_or(0, |place| place.seq));
    let report = replay(&events).unwrap();
    assert!(report.divergence.is_none(), "{}", report.divergence.unwrap());
    assert_eq!((report.commands, report.cut), (17, 0));
    assert!(report.replies > 30, "{report:?}");
    assert_eq!(report.states.values().collect::<Vec<_>>(), [&LifecycleState::Released]);

    // A reply that differs is found, wherever it is.
    let changed = events.iter_mut().rev().find_map(|event| match event {
        sandbox_model::trace::Event::Replied { reply, message, .. } if message == "ShareVolume" => Some(reply),
        _ => None,
    });
    *changed.unwrap() = serde_json::json!("something else");
    let divergence = replay(&events).unwrap().divergence.unwrap();
    assert_eq!(divergence.what, "reply to ShareVolume");

    // A trace cut off by a crash replays up to its end.
    let cut = replay(&events[..events.len() / 3]).unwrap();
    assert!(cut.divergence.is_none(), "{}", cut.divergence.unwrap());
}
