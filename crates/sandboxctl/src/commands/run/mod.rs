//! `run`: a bundle's whole life, from reading it to leaving nothing behind.

mod container;
mod engine;
mod failures;
mod plan;
mod signals;
mod stdio;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

pub(super) use failures::from_library;
use sandbox_model::SandboxId;
use sandbox_model::config::SandboxConfig;
use sandbox_model::config::annotations::apply_annotations;
use sandbox_model::config::sizing::{Demand, initial_size};

use crate::bundle::Bundle;
use crate::cli::{Global, RunArgs};
use crate::mode::{Facts, HostMode, Mode, VmmMode, choose};
use crate::output::progress::Progress;
use crate::output::{Code, Failure};
use crate::{private, settings};

/// What a run is about, decided before anything is made.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: SandboxId,
    pub(super) bundle: Bundle,
    pub(super) config: SandboxConfig,
    pub(super) mode: Mode,
    pub(super) progress: Progress,
}

/// Serves the verb. The exit code is the container's own, or tells of us (125, 124, 128 + signal).
pub(super) fn run(global: &Global, args: &RunArgs) -> ExitCode {
    let progress = Progress::new(global.quiet, args.json);
    let outcome = prepare(global, args, progress).and_then(|job| {
        if job.mode.host == HostMode::Private {
            // No thread exists yet.
            let needed: Vec<_> = args.netns.iter().chain([&job.bundle.rootfs]).map(PathBuf::as_path).collect();
            private::enter(&global.state_dir, &needed)?;
        }
        engine::start(global, args, &job)
    });
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            super::report(&failure, args.json);
            ExitCode::from(failure.exit.number_beside_guest())
        }
    }
}

fn prepare(global: &Global, args: &RunArgs, progress: Progress) -> Result<Job, Failure> {
    let loaded = settings::effective(global)?;
    settings::warn(&loaded);
    let bundle = Bundle::read(&args.bundle)?;
    let mut config = for_bundle(loaded.config, &bundle)?;
    let facts = Facts::probe(&config);
    let (mode, note) = choose(args.vmm, args.host, &facts);
    if mode.vmm == VmmMode::Qemu && !facts.vm_lacks.is_empty() {
        let what = "cannot run a real VM here";
        return Err(Failure::early(
            Code::HOST,
            what,
            facts.vm_lacks.join(", "),
            "sandboxctl doctor, or --vmm simulated",
        ));
    }
    if mode.vmm == VmmMode::Qemu && mode.host == HostMode::Simulated {
        let why = "its devices, links and mounts must be there";
        return Err(Failure::early(Code::HOST, "a real VM needs a real host", why, "--host private"));
    }
    if mode.host == HostMode::Real && !facts.is_root {
        let why = "the host's own mounts, links and cgroups need root";
        return Err(Failure::early(Code::HOST, "cannot use the host's own objects", why, "sudo, or --host private"));
    }
    if let Some(note) = note {
        progress.note(&note);
    }
    if mode.vmm == VmmMode::Simulated {
        imagine_guest(&mut config);
    }
    let id = match &args.id {
        Some(id) => id.clone(),
        None => made_up_id()?,
    };
    Ok(Job { id, bundle, config, mode, progress })
}

/// Nobody opens the files of a simulated guest, but a VM without them makes no sense even then.
fn imagine_guest(config: &mut SandboxConfig) {
    let vm = &mut config.hypervisor;
    if vm.kernel.as_os_str().is_empty() {
        vm.kernel = "/simulated/vmlinux".into();
    }
    if vm.initrd.is_none() && vm.image.is_none() {
        vm.initrd = Some("/simulated/initrd.cpio".into());
    }
}

/// What the bundle's annotations and limits make of the configuration.
fn for_bundle(mut config: SandboxConfig, bundle: &Bundle) -> Result<SandboxConfig, Failure> {
    let annotations: BTreeMap<_, _> = bundle.spec.annotations().clone().unwrap_or_default().into_iter().collect();
    let what = || format!("bundle {} was refused", bundle.dir.display());
    let enable = config.hypervisor.enable_annotations.clone();
    apply_annotations(&mut config, &annotations, &enable)
        .map_err(|error| Failure::early(Code::ANNOTATION, what(), &error, error.fix.clone()))?;
    let resources = bundle.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let size = Demand::new(resources, &annotations).and_then(|demand| initial_size(&config, &demand));
    let size = size.map_err(|error| {
        Failure::early(
            Code::BUNDLE_SPEC,
            what(),
            error,
            "correct linux.resources or the sandbox's annotations in config.json",
        )
    })?;
    let vm = &mut config.hypervisor;
    (vm.default_vcpus, vm.default_maxvcpus) = (size.vcpus, size.max_vcpus);
    (vm.default_memory, vm.default_maxmemory) = (size.memory_mib, size.max_memory_mib);
    Ok(config)
}

/// 12 digits from the kernel's generator: two runs at the same time must not meet.
fn made_up_id() -> Result<SandboxId, Failure> {
    let failed = |cause: &dyn std::fmt::Display| Failure::early(Code::HOST, "cannot make up an id", cause, "--id NAME");
    let text = std::fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(|error| failed(&error))?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).take(12).collect();
    SandboxId::new(format!("run-{digits}")).map_err(|error| failed(&error))
}
