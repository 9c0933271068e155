//! Numbers, and what we depend on to read a guest's answers.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use lifecycle_tests::simulated::{boot, container, create, in_virtual_time, limits, system};
use resource_actors::SandboxError;
use sandbox_model::request::ResourceUpdate;
use simulation::World;

/// A uid beyond the range of `i32` wrapped to that of root.
#[test]
fn cve_2024_40635_a_number_beyond_its_range_is_refused_and_does_not_wrap() {
    in_virtual_time(|| async {
        let world = Arc::new(World::new());
        let system = system(&world, None, None);
        let sandbox = create(&system, "numbers").await.unwrap();
        boot(&sandbox).await.unwrap();
        for (quota, memory) in [(-1, -1), (0, 0), (i64::MIN, i64::MIN)] {
            let limits = limits(quota, memory);
            match sandbox.update_linux_resources(container("c"), Some(limits), ResourceUpdate::Add).await {
                Ok(applied) => assert_eq!(applied.memory_mib, 2048, "{quota} {memory}: no limit is no memory"),
                Err(error) => assert!(matches!(error, SandboxError::Step(_)), "{error}"),
            }
            sandbox.update_linux_resources(container("c"), None, ResourceUpdate::Remove).await.unwrap();
        }
        for (quota, memory) in [(i64::MAX, 1 << 20), (100_000, i64::MAX), (i64::MAX, i64::MAX)] {
            let limits = limits(quota, memory);
            let asked = sandbox.update_linux_resources(container("c"), Some(limits), ResourceUpdate::Add).await;
            if let Ok(applied) = asked {
                assert!(applied.vcpus >= 1 && applied.memory_mib >= 2048, "{applied:?} is less than at boot");
                sandbox.update_linux_resources(container("c"), None, ResourceUpdate::Remove).await.unwrap();
            }
        }
    });
    let too_large = serde_json::json!({"uid": (1_u64 << 32), "gid": 0});
    assert!(serde_json::from_value::<oci_spec::runtime::User>(too_large).is_err(), "a uid has 32 bits");
}

/// The protobuf library followed nested unknown fields until its stack ended. That a deep answer fails
/// one call and nothing else is a test of `guest-agent`.
#[test]
fn cve_2025_53605_rustsec_2024_0437_the_protobuf_library_bounds_its_recursion() {
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock")).unwrap();
    let package = lock.split("[[package]]").find(|package| package.contains("\nname = \"protobuf\"\n")).unwrap();
    let version = package.lines().find_map(|line| line.strip_prefix("version = \"")).unwrap().trim_end_matches('"');
    let numbers: Vec<u32> = version.split('.').map(|number| number.parse().unwrap()).collect();
    assert!(numbers >= vec![3, 7, 2], "protobuf {version} is older than 3.7.2");
}
