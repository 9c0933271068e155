//! `AdoptDevices`: the table of a VM that an earlier process has left running.

use std::rc::Rc;
use std::sync::Arc;

use actor_shell::{Call, Completion, LocalFuture, Plan, Serve};
use sandbox_model::Instant;
use sandbox_model::adopt::{AdoptError, Confirmed};
use sandbox_model::ledger::{Entry, HostObject, Identity};

use super::{Clients, Daemon, DeviceActor, tag};
use crate::host::{AdoptDaemon, VfioName};
use crate::messages::AdoptDevices;
use crate::rebuild::{Rebuilt, rebuild};
use crate::vfio::VFIO_DRIVER;

impl Serve<AdoptDevices> for DeviceActor {
    type Ticket = Vec<Arc<Entry>>;
    type Outcome = Result<(Rebuilt, Option<Daemon>), AdoptError>;

    fn plan(&mut self, request: AdoptDevices, _: &Call) -> Plan<Vec<Arc<Entry>>, Result<Confirmed, AdoptError>> {
        Plan::Perform(request.entries)
    }

    fn perform(&self, entries: &mut Vec<Arc<Entry>>, call: &Call) -> LocalFuture<Self::Outcome> {
        let (clients, entries, deadline) = (self.clients.clone(), entries.clone(), call.deadline);
        let bridges = self.table.slots().bridges();
        Box::pin(async move {
            let present = clients.vmm.query_devices((), deadline).await?;
            let mut rebuilt = rebuild(bridges, clients.first_bridge_slot, &entries, &present)?;
            let (confirmed, daemon) = clients.confirm(&entries, deadline).await?;
            rebuilt.confirmed += confirmed;
            Ok((rebuilt, daemon))
        })
    }

    fn settle(&mut self, _: Vec<Arc<Entry>>, done: Completion<Self::Outcome>) -> Result<Confirmed, AdoptError> {
        let (rebuilt, daemon) = match done {
            Completion::Finished(result) => result?,
            Completion::DeadlinePassed => return Err(AdoptError::DeadlinePassed),
            Completion::Interrupted => return Err(AdoptError::Interrupted),
        };
        (self.table, self.daemon) = (Rc::new(rebuilt.table), daemon);
        Ok(Confirmed { objects: rebuilt.confirmed, orphans: rebuilt.orphans })
    }
}

impl Clients {
    /// Asks the host for what is not the VMM's to know, and takes hold of the vsock daemon. What only the
    /// intent is known of is not asked for: it belongs to a step that was cut off.
    async fn confirm(&self, entries: &[Arc<Entry>], deadline: Instant) -> Result<(usize, Option<Daemon>), AdoptError> {
        let (mut confirmed, mut daemon, mut lost) = (0, None, Vec::new());
        for entry in entries {
            let is_there = match (&entry.object, &entry.identity) {
                (HostObject::Process { .. }, Some(Identity::Process(process))) => {
                    let adopt = AdoptDaemon { process: *process, tag: tag(&self.sandbox, entry.id) };
                    daemon = Some((entry.id, self.host.adopt_daemon(adopt, deadline).await?));
                    true
                }
                (HostObject::VfioBinding { bdf, .. }, Some(_)) => {
                    let group = self.host.vfio_group(VfioName::Function(bdf.clone()), deadline).await?;
                    let is_bound = |driver: &Option<String>| driver.as_deref() == Some(VFIO_DRIVER);
                    group.functions.iter().any(|function| function.bdf == *bdf && is_bound(&function.driver))
                }
                _ => continue,
            };
            if is_there {
                confirmed += 1;
            } else {
                lost.push(&entry.object);
            }
        }
        AdoptError::unless_all(lost)?;
        Ok((confirmed, daemon))
    }
}
