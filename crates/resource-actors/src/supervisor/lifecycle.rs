//! Which message fits which state.

use sandbox_model::lifecycle::LifecycleState;

/// The supervisor's messages, as far as the lifecycle is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StepKind {
    /// `PrepareBeforeStartVm`.
    Prepare,
    /// `StartVm`.
    StartVm,
    /// `SetupAfterStartVm`.
    SetupAfterStartVm,
    /// `SetUpNetwork`, later than the rest.
    SetUpNetwork,
    /// A container's root file system, volumes, devices or limits.
    Container,
    /// `ReleaseContainer`.
    ReleaseContainer,
    /// `Stop`.
    Stop,
    /// `Cleanup`.
    Cleanup,
    /// `Save`.
    Save,
    /// `Adopt`, after a restart.
    Adopt,
}

impl StepKind {
    /// All kinds.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 10] = [
        Self::Prepare,
        Self::StartVm,
        Self::SetupAfterStartVm,
        Self::SetUpNetwork,
        Self::Container,
        Self::ReleaseContainer,
        Self::Stop,
        Self::Cleanup,
        Self::Save,
        Self::Adopt,
    ];

    /// Whether a message of this kind fits a sandbox in `state`.
    ///
    /// No arm is a wildcard: whoever adds a state or a message decides here.
    pub(crate) const fn fits(self, state: LifecycleState) -> bool {
        use LifecycleState::{Created, Failed, Prepared, Released, Running, Started, Stopped};
        match (self, state) {
            (Self::Prepare, Created) => true,
            (Self::Prepare, Prepared | Started | Running | Stopped | Released | Failed) => false,

            (Self::StartVm, Prepared) => true,
            (Self::StartVm, Created | Started | Running | Stopped | Released | Failed) => false,

            (Self::SetupAfterStartVm, Started) => true,
            (Self::SetupAfterStartVm, Created | Prepared | Running | Stopped | Released | Failed) => false,

            (Self::SetUpNetwork, Prepared | Started | Running) => true,
            (Self::SetUpNetwork, Created | Stopped | Released | Failed) => false,

            (Self::Container, Running) => true,
            (Self::Container, Created | Prepared | Started | Stopped | Released | Failed) => false,

            (Self::ReleaseContainer, Running | Stopped) => true,
            (Self::ReleaseContainer, Created | Prepared | Started | Released | Failed) => false,

            (Self::Stop, Created | Prepared | Started | Running | Stopped) => true,
            (Self::Stop, Released | Failed) => false,

            // Twice is as good as once.
            (Self::Cleanup, Created | Prepared | Started | Running | Stopped | Released | Failed) => true,

            (Self::Save, Created | Prepared | Started | Running | Stopped | Failed) => true,
            (Self::Save, Released) => false,

            // What an earlier process has left is failed until it has been taken over.
            (Self::Adopt, Failed) => true,
            (Self::Adopt, Created | Prepared | Started | Running | Stopped | Released) => false,
        }
    }

    /// The states that a message of this kind fits, for its refusal.
    pub(crate) fn needed(self) -> String {
        let fitting = LifecycleState::ALL.into_iter().filter(|state| self.fits(*state));
        fitting.map(|state| state.to_string()).collect::<Vec<_>>().join(" or ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_fits_the_states_of_this_table() {
        // Rows: messages. Columns: created prepared started running stopped released failed.
        let table = [
            (StepKind::Prepare, "x......"),
            (StepKind::StartVm, ".x....."),
            (StepKind::SetupAfterStartVm, "..x...."),
            (StepKind::SetUpNetwork, ".xxx..."),
            (StepKind::Container, "...x..."),
            (StepKind::ReleaseContainer, "...xx.."),
            (StepKind::Stop, "xxxxx.."),
            (StepKind::Cleanup, "xxxxxxx"),
            (StepKind::Save, "xxxxx.x"),
            (StepKind::Adopt, "......x"),
        ];
        assert_eq!(table.map(|(kind, _)| kind), StepKind::ALL);
        for (kind, row) in table {
            let fits: String =
                LifecycleState::ALL.iter().map(|state| if kind.fits(*state) { 'x' } else { '.' }).collect();
            assert_eq!(fits, row, "{kind:?}");
        }
    }

    #[test]
    fn a_refusal_names_what_is_needed() {
        assert_eq!(StepKind::ReleaseContainer.needed(), "running or stopped");
    }
}
