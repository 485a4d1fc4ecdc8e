//! A file, loaded: its objects, what was refused, and what of a running version is kept.

use super::auth::{self, AuthSection};
use super::diagnostic::{Diagnostic, Rule, Severity};
use super::files::Files;
use super::grammar::{self, Parsed, Section};
use super::objects::{self, Global, System};
use super::reader::Reader;
use super::registration::{self, Policies, RegistrationSection, Surroundings};
use super::transport::{self, TransportSection};
use crate::{Credentials, Policy, Registration};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

/// A loaded `pjsip.conf`
///
/// What Asterisk refuses is refused, object by object, and the rest is loaded; [`diagnostics`](Self::diagnostics) says
/// what and why. `Display` lists everything, without secrets.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Loaded {
    registrations: BTreeMap<Arc<str>, RegistrationSection>,
    /// In the order of the file: the first of a protocol is its default.
    transports: Vec<TransportSection>,
    auths: BTreeMap<Arc<str>, AuthSection>,
    endpoints: BTreeSet<Arc<str>>,
    global: Global,
    system: System,
    diagnostics: Vec<Diagnostic>,
    /// Registrations whose new version was refused.
    kept: BTreeSet<Arc<str>>,
    /// What the file has no option for; none is `Policy::asterisk()`.
    policy: Option<Arc<Policy>>,
}

/// Loads a file and what it includes
///
/// Never fails: a file that cannot be read or is no configuration loads nothing, and its diagnostics say so.
#[must_use]
pub fn load(files: &dyn Files, path: &str) -> Loaded {
    Loader::new(grammar::parse(files, path), &Loaded::default()).run()
}

/// The same under a policy of one's own, in place of [`Policy::asterisk`]; [`Loaded::reload`] keeps it
///
/// It decides what the file has no option for, such as [`Policy::inbound_from`] or [`Policy::keep_transcript`]. Intervals
/// and number of retries, `auth_rejection_permanent`, algorithms, the keep-alives of connections, T1, T2, timer F and the
/// time to connect are the file's, or the defaults of its options.
///
/// ```
/// use sip_registration::{InboundFrom, Policy};
/// # use sip_registration::pjsip_conf::{Directory, load_under};
/// let mut policy = Policy::asterisk();
/// policy.inbound_from = InboundFrom::Flow;
/// let loaded = load_under(&Directory::new("/etc/asterisk"), "pjsip.conf", policy);
/// ```
#[must_use]
pub fn load_under(files: &dyn Files, path: &str, policy: Policy) -> Loaded {
    let old = Loaded {
        policy: Some(Arc::new(policy)),
        ..Loaded::default()
    };
    Loader::new(grammar::parse(files, path), &old).run()
}

impl Loaded {
    /// Loads a file while this one runs: of what is refused, the running version is kept (BEHAVIOUR §5)
    ///
    /// That holds for a registration, for the `auth` sections and transports that it names, for all objects of a type
    /// that has a duplicate, and for the whole of an invalid file. What is no longer in the file is gone.
    #[must_use]
    pub fn reload(&self, files: &dyn Files, path: &str) -> Self {
        Loader::new(grammar::parse(files, path), self).run()
    }

    /// The registrations, in the order of their names.
    pub fn registrations(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Registration>)> {
        self.registrations
            .iter()
            .map(|(name, section)| (name, &section.registration))
    }

    /// One registration, with where it is and the ids of its `auth` sections.
    #[must_use]
    pub fn registration(&self, name: &str) -> Option<&RegistrationSection> {
        self.registrations.get(name)
    }

    /// The transports, in the order of the file: the first of a protocol is the one that a registration uses which
    /// names none.
    #[must_use]
    pub fn transports(&self) -> &[TransportSection] {
        &self.transports
    }

    /// The `auth` section of this id.
    #[must_use]
    pub fn auth(&self, name: &str) -> Option<&AuthSection> {
        self.auths.get(name)
    }

    /// What `type=global` says, or its defaults.
    #[must_use]
    pub const fn global(&self) -> &Global {
        &self.global
    }

    /// What `type=system` says, or its defaults.
    #[must_use]
    pub const fn system(&self) -> &System {
        &self.system
    }

    /// What was refused and what is doubtful, in the order in which it was found.
    #[must_use]
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// Whether something was refused.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.diagnostics
            .iter()
            .any(|said| said.severity == Severity::Error)
    }

    /// Whether the new version of this registration was refused, and the running one was kept.
    #[must_use]
    pub fn is_kept(&self, name: &str) -> bool {
        self.kept.contains(name)
    }
}

/// The types of which objects are made; names are case-sensitive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Global,
    System,
    Auth,
    Transport,
    Registration,
    Endpoint,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Global,
        Self::System,
        Self::Auth,
        Self::Transport,
        Self::Registration,
        Self::Endpoint,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Global => "global",
            Self::System => "system",
            Self::Auth => "auth",
            Self::Transport => "transport",
            Self::Registration => "registration",
            Self::Endpoint => "endpoint",
        }
    }
}

/// The other types that Asterisk has.
const OTHER_TYPES: [&str; 14] = [
    "acl",
    "aor",
    "asterisk-publication",
    "contact",
    "domain_alias",
    "identify",
    "inbound-publication",
    "outbound-publish",
    "phoneprov",
    "resource_list",
    "subscription_persistence",
    "certificate",
    "profile",
    "tn",
];

struct Loader<'a> {
    sections: Vec<Section>,
    valid: bool,
    old: &'a Loaded,
    new: Loaded,
    /// The types of which two objects have one name.
    duplicate: HashSet<Kind>,
}

impl<'a> Loader<'a> {
    fn new(parsed: Parsed, old: &'a Loaded) -> Self {
        let Parsed {
            sections,
            valid,
            diagnostics,
        } = parsed;
        let new = Loaded {
            diagnostics,
            policy: old.policy.clone(),
            ..Loaded::default()
        };
        Self {
            sections,
            valid,
            old,
            new,
            duplicate: HashSet::new(),
        }
    }

    fn run(mut self) -> Loaded {
        if !self.valid {
            let diagnostics = self.new.diagnostics;
            let kept = self.old.registrations.keys().cloned().collect();
            return Loaded {
                diagnostics,
                kept,
                ..self.old.clone()
            };
        }
        let sections = std::mem::take(&mut self.sections);
        let by_kind = self.sort(&sections);
        let of = |kind| by_kind.get(&kind).map(Vec::as_slice).unwrap_or_default();
        self.new.global = self.only(
            of(Kind::Global),
            Kind::Global,
            self.old.global.clone(),
            objects::global,
        );
        self.new.system = self.only(
            of(Kind::System),
            Kind::System,
            self.old.system,
            objects::system,
        );
        self.new.endpoints = of(Kind::Endpoint)
            .iter()
            .map(|section| Arc::clone(&section.name))
            .collect();
        self.auths(of(Kind::Auth));
        self.transports(of(Kind::Transport));
        self.registrations(of(Kind::Registration));
        self.new
    }

    /// Sorts the sections by their types, templates left out, and finds duplicates.
    fn sort<'s>(&mut self, sections: &'s [Section]) -> HashMap<Kind, Vec<&'s Section>> {
        let mut by_kind: HashMap<Kind, Vec<&Section>> = HashMap::new();
        let mut names = HashSet::new();
        for section in sections.iter().filter(|section| !section.template) {
            let mut types = section
                .variables
                .iter()
                .filter(|variable| variable.name.eq_ignore_ascii_case("type"));
            let Some(first) = types.next() else {
                self.say(Severity::Warning, section, None, Rule::NoType);
                continue;
            };
            if let Some(other) = types.find(|other| other.value != first.value) {
                let (used, ignored) = (Arc::clone(&first.value), Arc::clone(&other.value));
                self.say(
                    Severity::Warning,
                    section,
                    Some(other),
                    Rule::SeveralTypes { used, ignored },
                );
            }
            let Some(kind) = Kind::ALL
                .into_iter()
                .find(|kind| kind.name() == &*first.value)
            else {
                if !OTHER_TYPES.contains(&&*first.value) {
                    let rule = Rule::UnknownType(Arc::clone(&first.value));
                    self.say(Severity::Warning, section, Some(first), rule);
                }
                continue;
            };
            if !names.insert((kind, &section.name)) && kind != Kind::Endpoint {
                self.duplicate.insert(kind);
                self.say(Severity::Error, section, None, Rule::Duplicate(kind.name()));
            }
            by_kind.entry(kind).or_default().push(section);
        }
        by_kind
    }

    /// Reads the type of which there is one section.
    fn only<T: Default>(
        &mut self,
        sections: &[&Section],
        kind: Kind,
        old: T,
        read: fn(&mut Reader<'_>) -> Option<T>,
    ) -> T {
        let Some(section) = sections.first() else {
            return T::default();
        };
        for second in sections.iter().skip(1) {
            self.say(Severity::Warning, second, None, Rule::SecondOf(kind.name()));
        }
        let mut reader = Reader::new(section, kind.name(), &mut self.new.diagnostics);
        match read(&mut reader) {
            Some(object) if !self.duplicate.contains(&kind) => object,
            _ => old,
        }
    }

    fn auths(&mut self, sections: &[&Section]) {
        let duplicate = self.duplicate.contains(&Kind::Auth);
        if duplicate {
            self.new.auths = self.old.auths.clone();
        }
        for section in sections {
            let mut reader = Reader::new(section, "auth", &mut self.new.diagnostics);
            let auth = auth::auth(&mut reader, &self.new.global);
            // None is taken; what else is wrong with them is told all the same.
            if duplicate {
                continue;
            }
            let auth = auth.or_else(|| {
                let old = self.old.auths.get(&section.name)?;
                self.keep(section, "auth");
                Some(old.clone())
            });
            if let Some(auth) = auth {
                self.new.auths.insert(Arc::clone(&section.name), auth);
            }
        }
    }

    fn transports(&mut self, sections: &[&Section]) {
        let duplicate = self.duplicate.contains(&Kind::Transport);
        if duplicate {
            self.new.transports = self.old.transports.clone();
        }
        for section in sections {
            let before = self.new.diagnostics.len();
            let mut reader = Reader::new(section, "transport", &mut self.new.diagnostics);
            let read = transport::transport(&mut reader);
            if duplicate {
                continue;
            }
            // One that carries nothing here is not refused.
            let refused = self
                .new
                .diagnostics
                .iter()
                .skip(before)
                .any(|said| said.severity == Severity::Error);
            let transport = read.or_else(|| {
                let mut old = self.old.transports.iter().filter(|_| refused);
                let old = old.find(|old| *old.config.name() == section.name)?;
                self.keep(section, "transport");
                Some(old.clone())
            });
            let transport = transport.map(|new| self.reloaded(section, new));
            self.new.transports.extend(transport);
        }
    }

    /// Of a transport that runs, a new version may change what is advertised, and more only where it says so.
    fn reloaded(&mut self, section: &Section, new: TransportSection) -> TransportSection {
        let mut old = self.old.transports.iter();
        let old = old.find(|old| old.config.name() == new.config.name());
        let Some(old) = old.filter(|_| !new.allow_reload) else {
            return new;
        };
        let reloaded = new.over(old);
        if !reloaded.is_like(&new) {
            self.say(Severity::Warning, section, None, Rule::NotReloadable);
        }
        reloaded
    }

    fn registrations(&mut self, sections: &[&Section]) {
        let base = self.new.policy.as_deref().cloned();
        let base = base.unwrap_or_else(Policy::asterisk);
        let mut around = Surroundings {
            auths: &self.new.auths,
            transports: &self.new.transports,
            endpoints: &self.new.endpoints,
            global: &self.new.global,
            policies: Policies::new(base, &self.new.system, &self.new.global),
        };
        let mut accepted = BTreeMap::new();
        let mut refused = Vec::new();
        for section in sections {
            let mut reader = Reader::new(section, "registration", &mut self.new.diagnostics);
            let outbound_auth = registration::auth_ids(&reader);
            match registration::registration(&mut reader, &mut around) {
                Some(registration) => {
                    let made = RegistrationSection {
                        registration: Arc::new(registration),
                        outbound_auth,
                        file: Arc::clone(&section.place.file),
                        line: section.place.line,
                    };
                    accepted.insert(Arc::clone(&section.name), made);
                }
                None => refused.push(*section),
            }
        }
        if self.duplicate.contains(&Kind::Registration) {
            self.new.registrations = self.old.registrations.clone();
            self.new.kept = self.old.registrations.keys().cloned().collect();
            return;
        }
        for section in refused {
            if let Some(old) = self.old.registrations.get(&section.name) {
                self.keep(section, "registration");
                accepted.insert(Arc::clone(&section.name), old.clone());
                self.new.kept.insert(Arc::clone(&section.name));
            }
        }
        self.new.registrations = accepted;
    }

    fn keep(&mut self, section: &Section, type_: &'static str) {
        self.say(Severity::Warning, section, None, Rule::Kept(type_));
    }

    fn say(
        &mut self,
        severity: Severity,
        section: &Section,
        at: Option<&grammar::Variable>,
        rule: Rule,
    ) {
        let place = at.map_or(&section.place, |at| &at.place);
        self.new.diagnostics.push(Diagnostic {
            severity,
            file: Arc::clone(&place.file),
            line: place.line,
            section: Some(Arc::clone(&section.name)),
            option: at.map(|at| Arc::clone(&at.name)),
            // The only option that is looked at here is `type`.
            value: at.map(|at| crate::uri::excerpt(&at.value).into()),
            rule,
        });
    }
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.global != Global::default() {
            writeln!(f, "global")?;
            if let Some(user_agent) = &self.global.user_agent {
                writeln!(f, "  user_agent = {user_agent}")?;
            }
            writeln!(
                f,
                "  keep_alive_interval = {}",
                self.global.keep_alive_interval.as_secs()
            )?;
            writeln!(
                f,
                "  default_auth_algorithms_uac = {}",
                list(&self.global.default_auth_algorithms_uac)
            )?;
        }
        if self.system != System::default() {
            writeln!(f, "system")?;
            writeln!(f, "  timer_t1 = {}", self.system.timer_t1.as_millis())?;
            writeln!(f, "  timer_b = {}", self.system.timer_b.as_millis())?;
        }
        for transport in &self.transports {
            write_transport(f, transport)?;
        }
        for (name, auth) in &self.auths {
            writeln!(f, "auth {name}")?;
            writeln!(f, "  auth_type = {}", auth.auth_type)?;
            writeln!(f, "  username = {}", auth.credentials.username())?;
            writeln!(f, "  realm = {}", realm(&auth.credentials))?;
            writeln!(f, "  supported_algorithms_uac = {}", list(&auth.algorithms))?;
        }
        for (name, section) in &self.registrations {
            let detail = super::RegistrationDetail::of(name, section);
            writeln!(
                f,
                "registration {name}{}",
                if self.is_kept(name) { " (kept)" } else { "" }
            )?;
            for (option, value) in detail.options().filter(|(_, value)| !value.is_empty()) {
                writeln!(f, "  {option} = {value}")?;
            }
        }
        for said in &self.diagnostics {
            writeln!(f, "{said}")?;
        }
        Ok(())
    }
}

fn realm(credentials: &Credentials) -> &str {
    credentials.bound_realm().unwrap_or("*")
}

fn list(algorithms: &[crate::Algorithm]) -> String {
    algorithms
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

fn write_transport(f: &mut fmt::Formatter<'_>, transport: &TransportSection) -> fmt::Result {
    let TransportSection {
        config,
        tls,
        allow_reload,
    } = transport;
    writeln!(f, "transport {}", config.name())?;
    writeln!(
        f,
        "  protocol = {}",
        registration::parameter(config.protocol())
    )?;
    writeln!(f, "  bind = {}", config.bind())?;
    if config.listen() {
        writeln!(f, "  listens")?;
    }
    if let Some(host) = config.external_signaling_address() {
        writeln!(f, "  external_signaling_address = {host}")?;
    }
    if let Some(port) = config.external_signaling_port() {
        writeln!(f, "  external_signaling_port = {port}")?;
    }
    let nets: Vec<_> = config.local_net().collect();
    if !nets.is_empty() {
        writeln!(f, "  local_net = {}", nets.join(","))?;
    }
    if let Some(tos) = config.tos() {
        writeln!(f, "  tos = {tos:#04x}")?;
    }
    if let Some(cos) = config.cos() {
        writeln!(f, "  cos = {cos}")?;
    }
    if *allow_reload {
        writeln!(f, "  allow_reload = yes")?;
    }
    let Some(tls) = tls else { return Ok(()) };
    for (option, file) in [
        ("cert_file", &tls.cert_file),
        ("priv_key_file", &tls.priv_key_file),
        ("ca_list_file", &tls.ca_list_file),
        ("ca_list_path", &tls.ca_list_path),
    ] {
        if let Some(file) = file {
            writeln!(f, "  {option} = {file}")?;
        }
    }
    for (option, on) in [
        ("verify_server", tls.verify_server),
        ("verify_client", tls.verify_client),
        ("require_client_cert", tls.require_client_cert),
        ("allow_wildcard_certs", tls.allow_wildcard_certs),
    ] {
        if on {
            writeln!(f, "  {option} = yes")?;
        }
    }
    if let Some(method) = tls.method {
        writeln!(f, "  method = {method}")?;
    }
    Ok(())
}
