//! From a running configuration to a new one: what it takes, and doing it.

use super::loaded::Loaded;
use super::show::RegistrationDetail;
use crate::{
    Activity, Change, Failure, RegisterError, Registrar, Registration, RegistrationId, Removal,
    Status,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::{self, Future};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// What a new version of the file does to one registration
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
pub enum Step {
    /// The same as before: no message.
    Untouched,
    /// The new version was refused, the running one goes on: no message.
    Kept,
    /// Changed without a message.
    InPlace,
    /// A REGISTER tells the registrar, the binding stays.
    Registers,
    /// Un-REGISTER, then REGISTER.
    Replaces,
    /// No longer in the file: un-REGISTER.
    Removed,
    /// New in the file: REGISTER.
    Added,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Untouched => "untouched",
            Self::Kept => "kept, as the new version was refused",
            Self::InPlace => "changed in place",
            Self::Registers => "re-registered",
            Self::Replaces => "replaced",
            Self::Removed => "removed",
            Self::Added => "added",
        })
    }
}

/// What a new version of the file does
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Plan {
    /// By name, for all that were or are there
    pub steps: BTreeMap<Arc<str>, Step>,
    /// The registrations that take over the address of record of another one: they start only when its un-REGISTER is
    /// over, which could else remove the new binding (BEHAVIOUR §10, 26)
    pub after: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Whether a transport was added, removed or changed; `Transports::apply` does that, [`Running::apply`] does not
    pub transports_changed: bool,
}

impl Loaded {
    /// What it takes to go from `old`, which runs, to this version, which was made by [`reload`](Self::reload).
    #[must_use]
    pub fn plan(&self, old: &Self) -> Plan {
        Plan {
            transports_changed: {
                let (new, old) = (self.transports(), old.transports());
                new.len() != old.len() || !new.iter().zip(old).all(|(new, old)| new.is_like(old))
            },
            ..self.plan_from(&old.registrations().map(Old::settled).collect())
        }
    }

    /// The same for registrations that run, of whatever version; nothing is said about transports.
    fn plan_from(&self, old: &BTreeMap<&Arc<str>, Old<'_>>) -> Plan {
        let mut steps = BTreeMap::new();
        for (name, new) in self.registrations() {
            let step = match old.get(name).map(|old| old.change_to(new)) {
                None => Step::Added,
                Some(Change::Untouched) if self.is_kept(name) => Step::Kept,
                Some(Change::Untouched) => Step::Untouched,
                Some(Change::InPlace) => Step::InPlace,
                Some(Change::Registers) => Step::Registers,
                Some(Change::Replaces) => Step::Replaces,
            };
            steps.insert(Arc::clone(name), step);
        }
        // Who leaves which address of record.
        let mut leaving: BTreeMap<&str, Vec<&Arc<str>>> = BTreeMap::new();
        for (name, old) in old {
            let step = *steps.entry(Arc::clone(*name)).or_insert(Step::Removed);
            if matches!(step, Step::Removed | Step::Replaces) {
                for registration in [Some(old.registration), old.left].into_iter().flatten() {
                    let names = leaving.entry(registration.aor_text()).or_default();
                    names.push(*name);
                }
            }
        }
        let mut after: BTreeMap<Arc<str>, BTreeSet<Arc<str>>> = BTreeMap::new();
        for (name, registration) in self.registrations() {
            if !matches!(steps.get(name), Some(Step::Added | Step::Replaces)) {
                continue;
            }
            let before = leaving.get(registration.aor_text()).into_iter().flatten();
            for before in before.filter(|before| **before != name) {
                after
                    .entry(Arc::clone(name))
                    .or_default()
                    .insert(Arc::clone(before));
            }
        }
        Plan {
            steps,
            after,
            transports_changed: false,
        }
    }
}

/// A registration that runs, for a plan
#[derive(Debug, Clone, Copy)]
struct Old<'a> {
    registration: &'a Arc<Registration>,
    /// Its un-REGISTER was begun, and how it ended is not known.
    leaving: bool,
    /// Whether it has this configuration, or is about to have another one, is not known.
    unsure: bool,
    /// What it was before, where the un-REGISTER of that is under way.
    left: Option<&'a Arc<Registration>>,
}

impl<'a> Old<'a> {
    const fn settled(
        (name, registration): (&'a Arc<str>, &'a Arc<Registration>),
    ) -> (&'a Arc<str>, Self) {
        let old = Self {
            registration,
            leaving: false,
            unsure: false,
            left: None,
        };
        (name, old)
    }

    fn change_to(&self, new: &Registration) -> Change {
        match self.registration.change_to(new) {
            // What has begun to leave comes back as something new, also where it is the same.
            _ if self.leaving => Change::Replaces,
            Change::Untouched if self.unsure => Change::InPlace,
            change => change,
        }
    }
}

/// What became of a new version
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Applied {
    /// What was to be done
    pub plan: Plan,
    /// The fate of the bindings that were removed first
    pub removed: BTreeMap<Arc<str>, Removal>,
    /// The registrations that had given up and try again, which is what a reload is for (BEHAVIOUR §5)
    pub revived: Vec<Arc<str>>,
}

impl fmt::Display for Applied {
    /// A line for each registration that something happened to.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, step) in self
            .plan
            .steps
            .iter()
            .filter(|(_, step)| **step != Step::Untouched)
        {
            write!(f, "{}: {step}", name.escape_debug())?;
            match self.removed.get(name) {
                Some(removal) => writeln!(f, ", {removal}")?,
                None => writeln!(f)?,
            }
        }
        for name in &self.revived {
            writeln!(f, "{}: had given up, tries again", name.escape_debug())?;
        }
        Ok(())
    }
}

/// A configuration that a [`Registrar`] runs: which section is which registration
#[derive(Debug, Clone, Default)]
pub struct Running {
    loaded: Loaded,
    /// By section. What was interrupted leaves some behind that are not as `loaded` says.
    runs: BTreeMap<Arc<str>, Run>,
    /// Registrations that no section has any more, and that nothing is sent for.
    abandoned: Vec<RegistrationId>,
}

/// A registration at work, with the configuration that it was last given
#[derive(Debug, Clone)]
struct Run {
    id: RegistrationId,
    registration: Arc<Registration>,
    /// Its un-REGISTER was begun. Whoever looks at it in a later call, it may still be under way.
    leaving: bool,
    /// The command that gave it the configuration may not have been taken.
    unsure: bool,
    /// What it was before, which it leaves by itself: nobody waited for that un-REGISTER.
    left: Option<Arc<Registration>>,
}

impl Running {
    /// Nothing runs yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts what is new, changes what has changed, removes what is gone; what has not changed sends nothing
    ///
    /// At the start everything is new. Commands return when they were taken; only an un-REGISTER that something waits
    /// for, or of a section that is gone, is waited for: all at the same time, each up to `within`. A section whose
    /// un-REGISTER got no answer, and whose address of record another one takes over, gets another
    /// [`id`](Self::id): the registration of the old one sends nothing more. When the future is dropped, what was done
    /// is remembered, and the next call does the rest.
    ///
    /// # Errors
    /// [`RegisterError::Closed`] when the registrar has shut down.
    pub async fn apply(
        &mut self,
        registrar: &dyn Registrar,
        new: Loaded,
        within: Duration,
    ) -> Result<Applied, RegisterError> {
        self.forget(registrar).await?;
        self.overtaken(registrar, &new).await;
        let runs = self.runs.iter();
        let plan = Plan {
            transports_changed: new.plan(&self.loaded).transports_changed,
            ..new.plan_from(&runs.map(Run::old).collect())
        };
        let first: BTreeSet<_> = plan.after.values().flatten().collect();
        // What began to leave in an earlier call ends that first, and starts as something new.
        let again = self.runs.iter().filter(|(_, run)| run.leaving);
        let again: BTreeSet<_> = again.map(|(name, _)| Arc::clone(name)).collect();
        let waits = |name: &Arc<str>| plan.after.contains_key(name) || first.contains(name);
        let mut revived = Vec::new();
        self.loaded = new;
        // What waits for nobody is not to wait for a registrar that does not answer.
        for (name, step) in &plan.steps {
            if !waits(name) && !again.contains(name) {
                self.step(registrar, name, *step, &mut revived).await?;
            }
        }
        let mut leaving: Vec<Leaving<'_>> = Vec::new();
        for (name, step) in &plan.steps {
            let Some(run) = self.runs.get_mut(name) else {
                continue;
            };
            let removal = if *step == Step::Removed || again.contains(name) {
                registrar.remove(run.id, within)
            } else if first.contains(name) {
                registrar.unregister(run.id)
            } else {
                continue;
            };
            run.leaving = true;
            leaving.push((Arc::clone(name), removal));
        }
        let mut removed = BTreeMap::new();
        for (name, fate) in all(leaving).await {
            let removal = match fate {
                Ok(removal) => removal,
                Err(RegisterError::Unknown) => Removal::NeverBound,
                Err(RegisterError::Closed) => return Err(RegisterError::Closed),
            };
            let gone = plan.steps.get(&name) == Some(&Step::Removed) || again.contains(&name);
            // It would un-REGISTER once more when it changes, and the binding may be another one's by then.
            let unsure = !matches!(removal, Removal::Removed | Removal::NeverBound);
            if gone || unsure {
                let run = self.runs.remove(&name).filter(|_| !gone);
                self.abandoned.extend(run.map(|run| run.id));
            }
            removed.insert(name, removal);
        }
        self.forget(registrar).await?;
        for (name, step) in &plan.steps {
            if waits(name) || again.contains(name) {
                self.step(registrar, name, *step, &mut revived).await?;
            }
        }
        Ok(Applied {
            plan,
            removed,
            revived,
        })
    }

    /// Ends what no section has any more, without a message.
    async fn forget(&mut self, registrar: &dyn Registrar) -> Result<(), RegisterError> {
        while let Some(id) = self.abandoned.last().copied() {
            match registrar.remove(id, Duration::ZERO).await {
                Ok(_) | Err(RegisterError::Unknown) => self.abandoned.pop(),
                Err(RegisterError::Closed) => return Err(RegisterError::Closed),
            };
        }
        Ok(())
    }

    /// Marks as leaving what still leaves an address of record, by an earlier version, that another section has now.
    async fn overtaken(&mut self, registrar: &dyn Registrar, new: &Loaded) {
        for (name, run) in &mut self.runs {
            let Some(left) = &run.left else { continue };
            let status = registrar.status(run.id).await;
            let leaves = |status: Status| status.activity == Activity::Unregistering;
            if !run.unsure && !status.is_some_and(leaves) {
                run.left = None;
                continue;
            }
            let mut others = new.registrations();
            run.leaving |= others.any(|(other, registration)| {
                other != name && registration.aor_text() == left.aor_text()
            });
        }
    }

    /// Carries out all but a removal.
    async fn step(
        &mut self,
        registrar: &dyn Registrar,
        name: &Arc<str>,
        step: Step,
        revived: &mut Vec<Arc<str>>,
    ) -> Result<(), RegisterError> {
        let Some(section) = self
            .loaded
            .registration(name)
            .filter(|_| step != Step::Removed)
        else {
            return Ok(());
        };
        let new = Arc::clone(&section.registration);
        let registration = || new.as_ref().clone();
        let Some(id) = self.id(name) else {
            let id = registrar.register(registration()).await?;
            return self.runs_as(name, id, new);
        };
        let done = match step {
            Step::Untouched | Step::Kept => match registrar.status(id).await {
                Some(status) if has_given_up(&status) => {
                    revived.push(Arc::clone(name));
                    if matches!(
                        status.last_failure,
                        Some(Failure::CredentialsRefused { .. })
                    ) {
                        registrar.retry_credentials(id).await
                    } else {
                        registrar.refresh(id).await
                    }
                }
                Some(_) => Ok(()),
                None => Err(RegisterError::Unknown),
            },
            Step::InPlace | Step::Registers | Step::Replaces | Step::Added | Step::Removed => {
                self.about_to_be(name, &new);
                registrar.reconfigure(id, registration()).await.map(drop)
            }
        };
        // Somebody else has removed it: it is in the file, so it runs again.
        match done {
            Err(RegisterError::Unknown) => {
                let id = registrar.register(registration()).await?;
                self.runs_as(name, id, new)
            }
            Err(closed) => Err(closed),
            Ok(()) => self.runs_as(name, id, new),
        }
    }

    fn runs_as(
        &mut self,
        name: &Arc<str>,
        id: RegistrationId,
        registration: Arc<Registration>,
    ) -> Result<(), RegisterError> {
        let old = self.runs.get_mut(name).filter(|old| old.id == id);
        let run = Run {
            id,
            registration,
            leaving: false,
            unsure: false,
            left: old.and_then(|old| old.left.take()),
        };
        self.runs.insert(Arc::clone(name), run);
        Ok(())
    }

    /// Before a command that changes it: who asks in a later call, when this one is dropped, knows that it may have been.
    fn about_to_be(&mut self, name: &Arc<str>, new: &Arc<Registration>) {
        let Some(run) = self.runs.get_mut(name) else {
            return;
        };
        let old = std::mem::replace(&mut run.registration, Arc::clone(new));
        if !run.leaving && old.aor_text() != new.aor_text() {
            run.left = Some(old);
        }
        run.unsure = true;
    }

    /// The version that runs.
    #[must_use]
    pub const fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// The registration of a section.
    #[must_use]
    pub fn id(&self, name: &str) -> Option<RegistrationId> {
        self.runs.get(name).map(|run| run.id)
    }

    /// All sections that run, by name.
    pub fn ids(&self) -> impl Iterator<Item = (&Arc<str>, RegistrationId)> {
        self.runs.iter().map(|(name, run)| (name, run.id))
    }

    /// The section of a registration.
    #[must_use]
    pub fn name(&self, id: RegistrationId) -> Option<&Arc<str>> {
        self.ids()
            .find(|(_, known)| *known == id)
            .map(|(name, _)| name)
    }

    /// All registrations of the file as of `now`, with those that do not run.
    pub async fn details(
        &self,
        registrar: &dyn Registrar,
        now: Instant,
    ) -> Vec<RegistrationDetail> {
        let statuses: BTreeMap<RegistrationId, Status> =
            registrar.statuses().await.into_iter().collect();
        let names = self.loaded.registrations().map(|(name, _)| name);
        names
            .filter_map(|name| {
                let detail = RegistrationDetail::of(name, self.loaded.registration(name)?);
                let status = self.id(name).and_then(|id| statuses.get(&id));
                Some(match status {
                    Some(status) => detail.with_status(status, now),
                    None => detail,
                })
            })
            .collect()
    }
}

impl Run {
    const fn old<'a>((name, run): (&'a Arc<str>, &'a Self)) -> (&'a Arc<str>, Old<'a>) {
        let old = Old {
            registration: &run.registration,
            leaving: run.leaving,
            unsure: run.unsure,
            left: run.left.as_ref(),
        };
        (name, old)
    }
}

/// Whether it failed and plans nothing: what a reload revives
///
/// Whatever the reference's word is: after a grant of 0 that is `Unregistered`. Who was told to leave has no failure.
fn has_given_up(status: &Status) -> bool {
    status.activity == Activity::Idle && status.last_failure.is_some()
}

/// A removal under way, with the name of its section.
type Leaving<'a> = (
    Arc<str>,
    Pin<Box<dyn Future<Output = Result<Removal, RegisterError>> + Send + 'a>>,
);

/// Waits for all of them at the same time.
async fn all(mut leaving: Vec<Leaving<'_>>) -> Vec<(Arc<str>, Result<Removal, RegisterError>)> {
    let mut done = Vec::with_capacity(leaving.len());
    future::poll_fn(|cx| {
        leaving.retain_mut(|(name, removal)| match removal.as_mut().poll(cx) {
            Poll::Ready(fate) => {
                done.push((Arc::clone(name), fate));
                false
            }
            Poll::Pending => true,
        });
        if leaving.is_empty() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    done
}
