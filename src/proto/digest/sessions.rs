//! The nonces of one registration, and what a challenge means for them: answer, ask, or give up.

use super::challenge::{Challenge, Echo, Item, Items, Qop, has_control};
use super::contract::{Due, Query, Reaction, Refusal, Role, Rules, ServerProof, Unanswerable};
use super::response::{Answer, Hex, ha1};
use crate::config::credentials::{Algorithm, Credentials, Resolved, Secret};
use crate::proto::entropy::Entropy;
use std::fmt::{self, Write};

/// Realms kept in mind and answered at most; a server that makes up a realm a challenge must not fill the memory.
const MOST_REALMS: usize = 16;

/// The method of all that is authorized here.
const METHOD: &str = "REGISTER";

/// The digest state of one registration: a session for each realm of the registrar and of the proxies
///
/// RFC 7616 §3.4 and RFC 3261 §22.2, §22.3. Empty until the first challenge. `Debug` shows neither nonces nor secrets.
#[derive(Clone, Default)]
pub(crate) struct Sessions(Vec<Session>);

impl Sessions {
    /// A new cycle begins: the nonces there are count as obtained before it, stale challenges (RFC 7616 §3.3) anew.
    pub(crate) fn begin_cycle(&mut self) {
        for session in &mut self.0 {
            session.leave_cycle();
            session.stale = 0;
            if let Some(answer) = &mut session.answer {
                answer.fresh = false;
            }
        }
    }

    /// The request is built anew within the cycle (after a 423, or for another target)
    ///
    /// Answers so far then go along only where credentials are sent unasked, RFC 3261 §22.2.
    pub(crate) fn begin_request(&mut self) {
        for session in &mut self.0 {
            if let Some(answer) = session.answer.as_mut().filter(|_| session.sent) {
                answer.reusable = true;
            }
            session.leave_cycle();
        }
    }

    /// Takes the challenges of a 401 (`Role::Origin`) or 407 (`Role::Proxy`) to the request authorized last
    ///
    /// RFC 3261 §22.2 and §22.3, RFC 8760 §2.4: in each realm the topmost challenge that is supported and allowed and
    /// for which there are credentials, and one answer a realm. When a second challenge in a realm is a rejection of
    /// the credentials: where the refused answer was the first use of a nonce received in this cycle, or the same
    /// nonce comes back, unless the server says `stale=true`.
    ///
    /// With several outcomes in several realms a refusal counts before a stale limit, that before what can be done.
    pub(crate) fn challenged(
        &mut self,
        role: Role,
        challenges: &[Challenge],
        credentials: &[Credentials],
        rules: &Rules<'_>,
    ) -> Reaction {
        for session in &mut self.0 {
            session.answering = false;
            session.pending = None;
        }
        let mut realms: Vec<&str> = Vec::new();
        for realm in challenges
            .iter()
            .filter(|one| one.is_usable())
            .filter_map(Challenge::realm)
        {
            if realms.len() < MOST_REALMS
                && !realms.iter().any(|known| known.eq_ignore_ascii_case(realm))
            {
                realms.push(realm);
            }
        }
        let mut why = match challenges {
            [] => Unanswerable::NoChallenge,
            _ => Unanswerable::Malformed,
        };
        let mut over = None;
        let mut refused = None;
        for realm in realms {
            let of_realm = || {
                challenges
                    .iter()
                    .filter(|one| one.is_usable() && is(one.realm(), realm))
            };
            let selection = match self.select(realm, of_realm(), credentials, rules) {
                Ok(selection) => selection,
                Err(other) => {
                    why = why.or(other);
                    continue;
                }
            };
            let session = self.session(role, realm);
            match session.judge(of_realm(), rules.max_stale) {
                Judgement::Answer => session.prepare(selection),
                Judgement::StaleLimit => over = over.or_else(|| Some(realm.to_owned())),
                Judgement::Refused(refusal) => refused = refused.or(Some(refusal)),
            }
        }
        match (refused, over) {
            (Some(refusal), _) => Reaction::Refused(refusal),
            (None, Some(realm)) => Reaction::StaleLimit { realm },
            (None, None) => self.reaction(why),
        }
    }

    /// Takes what the provider returned for a [`Query`] (RFC 3261 §22.1); the next thing to do comes back.
    pub(crate) fn provide(&mut self, role: Role, realm: &str, secret: Option<Secret>) -> Reaction {
        let why = Unanswerable::NoSecret {
            realm: realm.to_owned(),
        };
        if let Some(session) = self.0.iter_mut().find(|session| session.is(role, realm))
            && let Some(Pending {
                credentials,
                mut candidates,
            }) = session.pending.take().map(|pending| *pending)
            && let Some(secret) = secret
            && let Some(at) = candidates
                .iter()
                .position(|candidate| secret.covers(candidate.algorithm))
        {
            session.adopt(
                candidates.swap_remove(at),
                Resolved::new(credentials, Some(secret)),
            );
        }
        self.reaction(why)
    }

    /// Writes the `Authorization` and `Proxy-Authorization` lines of the next REGISTER, RFC 3261 §22.2 and §22.3
    ///
    /// What was challenged for this request goes in always, with `unasked` also what was accepted before (RFC 7616
    /// §3.6 allows it while the nonce lasts). Each use of a nonce is counted, whatever request it is in.
    /// `uri` is the Request-URI byte for byte. Returns the number of lines.
    pub(crate) fn authorize(
        &mut self,
        uri: &str,
        entropy: &mut Entropy,
        unasked: bool,
        out: &mut impl Write,
    ) -> usize {
        let mut lines = 0;
        for session in &mut self.0 {
            session.answering = false;
            session.sent = false;
            let Some(answer) = &mut session.answer else {
                continue;
            };
            let wanted = session.challenged || (unasked && answer.reusable);
            if !wanted {
                continue;
            }
            let Some(ha1) = ha1(&answer.resolved(), &session.realm, answer.algorithm) else {
                continue;
            };
            answer.nc = answer.nc.saturating_add(1);
            if answer.qop.is_some() || answer.sess {
                let cnonce = || std::array::from_fn(|_| entropy.u32() as u8);
                answer.cnonce.get_or_insert_with(cnonce);
            }
            session.sent = true;
            // RFC 8760 §2.4: what was once protected by SHA-2 does not fall back to MD5.
            session.sha2 |= answer.algorithm != Algorithm::Md5;
            let name = match session.role {
                Role::Origin => "Authorization",
                Role::Proxy => "Proxy-Authorization",
            };
            let username = answer.credentials.username();
            let cnonce = answer.cnonce_text();
            let computed = answer.answer(ha1.as_str(), cnonce.as_str(), METHOD, uri, b"");
            // Only a buffer that is full can refuse, and those given here grow.
            let _ = write!(out, "{name}: ")
                .and_then(|()| computed.write(username, &session.realm, &answer.echo, out))
                .and_then(|()| out.write_str("\r\n"));
            lines += 1;
        }
        lines
    }

    /// The request authorized last was not sent: its nonces were not used by it (RFC 7616 §3.4).
    pub(crate) fn take_back(&mut self) {
        for session in self.0.iter_mut().filter(|session| session.sent) {
            session.sent = false;
            session.answering = session.challenged;
            if let Some(answer) = &mut session.answer {
                answer.nc = answer.nc.saturating_sub(1);
            }
        }
    }

    /// A 2xx came: what the last request carried is accepted, and good for later ones (RFC 7616 §3.6).
    pub(crate) fn accepted(&mut self) {
        for session in self.0.iter_mut().filter(|session| session.sent) {
            if let Some(answer) = &mut session.answer {
                answer.accepted = true;
                answer.reusable = true;
            }
        }
    }

    /// Reads `Authentication-Info` (`Role::Origin`) or `Proxy-Authentication-Info` of a 2xx, RFC 7616 §3.5
    ///
    /// Adopts `nextnonce` and checks `rspauth`. The header names no realm: where several were answered, the one whose
    /// cnonce it repeats is meant. `uri` and `body` are those of the request's Request-URI and of the response.
    pub(crate) fn authentication_info(
        &mut self,
        role: Role,
        value: &str,
        uri: &str,
        body: &[u8],
    ) -> ServerProof {
        let mut info = Info::default();
        for item in Items::new(value) {
            if let Item::Param { name, value } = item {
                info.set(name, value.into_owned());
            }
        }
        let mut sent = self
            .0
            .iter_mut()
            .filter(|session| session.sent && session.role == role);
        let session = match (sent.next(), sent.next()) {
            (Some(only), None) => Some(only),
            _ => info.cnonce.as_deref().and_then(|cnonce| {
                let mut sent = self
                    .0
                    .iter_mut()
                    .filter(|session| session.sent && session.role == role);
                sent.find(|session| {
                    session
                        .answer
                        .as_ref()
                        .is_some_and(|answer| answer.cnonce_text().as_str() == cnonce)
                })
            }),
        };
        let Some(session) = session else {
            return ServerProof::Absent;
        };
        let Some(answer) = &mut session.answer else {
            return ServerProof::Absent;
        };
        let mut proof = ServerProof::Absent;
        if let Some(rspauth) = &info.rspauth
            && let Some(ha1) = ha1(&answer.resolved(), &session.realm, answer.algorithm)
        {
            let cnonce = answer.cnonce_text();
            let mut expected = answer.answer(ha1.as_str(), cnonce.as_str(), "", uri, body);
            // The protection of the response is its own, RFC 7616 §3.5.
            expected.qop = expected.qop.map(|ours| info.qop.unwrap_or(ours));
            proof = match expected.response().as_str().eq_ignore_ascii_case(rspauth) {
                true => ServerProof::Right,
                false => ServerProof::Wrong,
            };
        }
        if let Some(next) = info
            .nextnonce
            .filter(|next| proof != ServerProof::Wrong && !has_control(next))
            && *next != *answer.nonce
        {
            answer.renew(next.into_boxed_str());
        }
        proof
    }

    /// The cycle failed: the next one begins without credentials (BEHAVIOUR: a retry never carries `Authorization`)
    ///
    /// Secrets that a provider returned are dropped and asked for again. How often a nonce was used stays known
    /// (RFC 7616 §3.4: a server may send it again), and which realms were answered with SHA-2.
    pub(crate) fn clear_for_retry(&mut self) {
        self.begin_cycle();
        for answer in self
            .0
            .iter_mut()
            .filter_map(|session| session.answer.as_mut())
        {
            answer.withdraw();
        }
    }

    /// Forgets everything, what RFC 8760 §2.4 asks to remember about algorithms too: the configuration has changed.
    pub(crate) fn forget(&mut self) {
        self.0 = Vec::new();
    }

    /// Whether no realm (RFC 7616 §3.3) is known yet.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The answers that the next [`authorize`](Self::authorize) gives to the last challenges, RFC 3261 §22.1
    ///
    /// For those who count refused credentials; answers that only go along again are not among them.
    pub(crate) fn due(&self) -> impl Iterator<Item = Due<'_>> {
        self.0
            .iter()
            .filter(|session| session.answering)
            .filter_map(|session| {
                let answer = session.answer.as_ref()?;
                Some(Due {
                    realm: &session.realm,
                    accepted_before: answer.accepted,
                    resolved: answer.resolved(),
                })
            })
    }

    /// The algorithm (RFC 8760 §2.1) of the request authorized last; the registrar's where a proxy's is there too.
    #[must_use]
    pub(crate) fn algorithm_used(&self) -> Option<Algorithm> {
        let mut sent: Vec<_> = self.0.iter().filter(|session| session.sent).collect();
        sent.sort_by_key(|session| session.role != Role::Origin);
        Some(sent.first()?.answer.as_ref()?.algorithm)
    }

    /// What can be answered in a realm, and with which credential.
    fn select<'a>(
        &self,
        realm: &str,
        challenges: impl Iterator<Item = &'a Challenge> + Clone,
        credentials: &[Credentials],
        rules: &Rules<'_>,
    ) -> Result<Selection, Unanswerable> {
        let named = || realm.to_owned();
        let had_sha2 = self
            .0
            .iter()
            .any(|session| session.sha2 && session.realm.eq_ignore_ascii_case(realm));
        let offered = challenges
            .clone()
            .map(|one| one.algorithm_token().unwrap_or("MD5").to_owned());
        let mut why = Unanswerable::Algorithm {
            realm: named(),
            offered: offered.collect(),
        };
        let mut chosen: Option<Credentials> = None;
        let mut candidates: Vec<Candidate> = Vec::new();
        for challenge in challenges {
            let Some((algorithm, sess)) = rules.allowed(challenge) else {
                continue;
            };
            let md5 = algorithm == Algorithm::Md5;
            if md5 && had_sha2 && rules.downgrade_refuse {
                why = why.or(Unanswerable::Downgrade { realm: named() });
                continue;
            }
            let Ok(qop) = challenge.qop(rules.auth_int) else {
                why = why.or(Unanswerable::Qop { realm: named() });
                continue;
            };
            match &chosen {
                Some(chosen) if chosen.fits(algorithm) => {}
                Some(_) => continue,
                None => match Credentials::select(credentials, realm, algorithm) {
                    Some(found) => chosen = Some(found.clone()),
                    None => {
                        why = why.or(Unanswerable::NoCredentials { realm: named() });
                        continue;
                    }
                },
            }
            if !md5 {
                candidates
                    .iter_mut()
                    .for_each(|above| above.weak_first |= above.algorithm == Algorithm::Md5);
            }
            let challenge = challenge.clone();
            candidates.push(Candidate {
                challenge,
                algorithm,
                sess,
                qop,
                weak_first: false,
            });
        }
        match chosen {
            Some(credentials) => Ok(Selection {
                credentials,
                candidates,
            }),
            None => Err(why),
        }
    }

    /// The session of a realm, made where there is none.
    fn session(&mut self, role: Role, realm: &str) -> &mut Session {
        let at = match self.0.iter().position(|session| session.is(role, realm)) {
            Some(at) => at,
            None => {
                if self.0.len() >= MOST_REALMS * 2 {
                    self.make_room();
                }
                // One realm is the rule, and there may be a hundred thousand of these.
                self.0.reserve_exact(1);
                self.0.push(Session::new(role, realm));
                self.0.len() - 1
            }
        };
        &mut self.0[at]
    }

    /// Drops the oldest session that no request of this cycle needs, rather one that was never answered with SHA-2.
    fn make_room(&mut self) {
        let idle = |session: &Session| !session.challenged && session.pending.is_none();
        let victim = self
            .0
            .iter()
            .position(|session| idle(session) && !session.sha2);
        let victim = victim.or_else(|| self.0.iter().position(idle)).unwrap_or(0);
        if victim < self.0.len() {
            self.0.remove(victim);
        }
    }

    /// The next thing to do after challenges were taken; `why` where it is nothing.
    fn reaction(&self, why: Unanswerable) -> Reaction {
        let ask = self
            .0
            .iter()
            .find_map(|session| session.pending.as_ref().map(|pending| (session, pending)));
        if let Some((session, pending)) = ask {
            let mut algorithms = Vec::new();
            for candidate in &pending.candidates {
                if !algorithms.contains(&candidate.algorithm) {
                    algorithms.push(candidate.algorithm);
                }
            }
            let username = pending.credentials.username().to_owned();
            return Reaction::Ask(Query {
                role: session.role,
                realm: session.realm.to_string(),
                username,
                algorithms,
            });
        }
        let mut answering = self.0.iter().filter(|session| session.answering).peekable();
        if answering.peek().is_none() {
            return Reaction::Unanswerable(why);
        }
        let weak_first = answering.any(|session| {
            session
                .answer
                .as_ref()
                .is_some_and(|answer| answer.weak_first)
        });
        Reaction::Answer { weak_first }
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.0).finish()
    }
}

/// What was chosen for a realm.
struct Selection {
    credentials: Credentials,
    /// Topmost first; more than one counts only where the secret is still to come.
    candidates: Vec<Candidate>,
}

/// A challenge that can be answered.
#[derive(Clone)]
struct Candidate {
    challenge: Challenge,
    algorithm: Algorithm,
    sess: bool,
    qop: Option<Qop>,
    /// MD5 that stands above SHA-2.
    weak_first: bool,
}

/// What a challenge means in view of the request it came to.
enum Judgement {
    Answer,
    StaleLimit,
    Refused(Refusal),
}

/// One realm of the registrar or of a proxy.
#[derive(Clone)]
struct Session {
    role: Role,
    realm: Box<str>,
    /// Challenged for the request that is being built: the answer goes in.
    challenged: bool,
    /// The answer is new since the last request.
    answering: bool,
    /// The last request carried the answer.
    sent: bool,
    /// Was answered with SHA-2 at some time.
    sha2: bool,
    /// `stale=true` seen in this cycle.
    stale: u8,
    answer: Option<Box<Current>>,
    /// The provider is being asked.
    pending: Option<Box<Pending>>,
}

#[derive(Clone)]
struct Pending {
    credentials: Credentials,
    candidates: Vec<Candidate>,
}

/// A nonce and how it is answered.
#[derive(Clone)]
struct Current {
    echo: Echo,
    credentials: Credentials,
    /// The same with what the provider returned for it; rare.
    provided: Option<Box<Resolved>>,
    /// That of the challenge, or the `nextnonce` since.
    nonce: Box<str>,
    /// None until the nonce is used; kept as long as it is, so that `-sess` keys stay valid.
    cnonce: Option<[u8; 16]>,
    /// Uses of the nonce so far, across requests and cycles (RFC 7616 §3.4).
    nc: u32,
    algorithm: Algorithm,
    sess: bool,
    qop: Option<Qop>,
    /// MD5 that stood above SHA-2.
    weak_first: bool,
    /// The nonce was obtained in this cycle.
    fresh: bool,
    /// A 2xx came to this credential.
    accepted: bool,
    /// May be sent unasked.
    reusable: bool,
}

impl Session {
    fn new(role: Role, realm: &str) -> Self {
        Self {
            role,
            realm: realm.into(),
            challenged: false,
            answering: false,
            sent: false,
            sha2: false,
            stale: 0,
            answer: None,
            pending: None,
        }
    }

    fn is(&self, role: Role, realm: &str) -> bool {
        self.role == role && self.realm.eq_ignore_ascii_case(realm)
    }

    fn leave_cycle(&mut self) {
        self.challenged = false;
        self.answering = false;
        self.sent = false;
        self.pending = None;
    }

    /// Whether the challenges of this realm refuse the credentials, or only what was wrong with the nonce.
    fn judge<'a>(
        &mut self,
        challenges: impl Iterator<Item = &'a Challenge> + Clone,
        max_stale: u8,
    ) -> Judgement {
        let Some(answer) = self.answer.as_mut().filter(|_| self.sent) else {
            return Judgement::Answer;
        };
        if challenges.clone().any(Challenge::stale) {
            self.stale = self.stale.saturating_add(1);
            if self.stale <= max_stale {
                return Judgement::Answer;
            }
            self.challenged = false;
            answer.reusable = false;
            return Judgement::StaleLimit;
        }
        let same = challenges
            .filter_map(Challenge::nonce)
            .any(|nonce| *nonce == *answer.nonce);
        let first_use = answer.fresh && answer.nc <= 1;
        if !same && !first_use {
            return Judgement::Answer;
        }
        let resolved = answer.resolved();
        answer.accepted = false;
        answer.withdraw();
        self.challenged = false;
        Judgement::Refused(Refusal {
            role: self.role,
            realm: self.realm.to_string(),
            resolved,
        })
    }

    /// Answers where the secret is at hand, and asks for it where it is not.
    fn prepare(
        &mut self,
        Selection {
            credentials,
            mut candidates,
        }: Selection,
    ) {
        let known = match credentials.is_provided() {
            false => Some(Resolved::new(credentials.clone(), None)),
            // What was provided holds while it is in use in this cycle or has been accepted.
            true => self
                .answer
                .as_ref()
                .filter(|answer| {
                    answer.credentials == credentials && (answer.fresh || answer.accepted)
                })
                .filter(|answer| answer.resolved().provided().is_some())
                .map(|answer| answer.resolved()),
        };
        let usable = known.and_then(|resolved| {
            let covers = |candidate: &Candidate| {
                resolved
                    .secret()
                    .is_some_and(|s| s.covers(candidate.algorithm))
            };
            let at = candidates.iter().position(covers)?;
            Some((at, resolved))
        });
        match usable {
            Some((at, resolved)) => self.adopt(candidates.swap_remove(at), resolved),
            None => {
                self.pending = Some(Box::new(Pending {
                    credentials,
                    candidates,
                }))
            }
        }
    }

    /// Makes `candidate` the challenge to answer; a nonce that comes again is counted on.
    fn adopt(&mut self, candidate: Candidate, resolved: Resolved) {
        let Candidate {
            challenge,
            algorithm,
            sess,
            qop,
            weak_first,
        } = candidate;
        let (realm, nonce, echo) = challenge.into_parts();
        // Its spelling may have changed, and it is hashed.
        self.realm = realm;
        let (mut cnonce, mut nc, mut accepted) = (None, 0, false);
        if let Some(before) = self.answer.take() {
            accepted = before.accepted && before.resolved() == resolved;
            if before.nonce == nonce {
                (cnonce, nc) = (before.cnonce, before.nc);
            }
        }
        let current = Current {
            echo,
            credentials: resolved.credentials().clone(),
            provided: resolved.provided().is_some().then(|| Box::new(resolved)),
            nonce,
            cnonce,
            nc,
            algorithm,
            sess,
            qop,
            weak_first,
            fresh: true,
            accepted,
            reusable: false,
        };
        self.answer = Some(Box::new(current));
        self.challenged = true;
        self.answering = true;
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Session");
        shown.field("role", &self.role).field("realm", &self.realm);
        let flags = [self.challenged, self.answering, self.sent, self.sha2];
        shown
            .field("flags", &flags)
            .field("stale", &self.stale)
            .field("pending", &self.pending.is_some());
        if let Some(answer) = &self.answer {
            shown
                .field("algorithm", &answer.algorithm)
                .field("nc", &answer.nc);
            shown
                .field("accepted", &answer.accepted)
                .field("fresh", &answer.fresh)
                .field("reusable", &answer.reusable)
                .field("provided", &answer.provided.is_some());
        }
        shown.finish_non_exhaustive()
    }
}

impl Current {
    /// The credential with what the provider returned for it.
    fn resolved(&self) -> Resolved {
        match &self.provided {
            Some(resolved) => Resolved::clone(resolved),
            None => Resolved::new(self.credentials.clone(), None),
        }
    }

    /// The cnonce as it is written, empty while there is none.
    fn cnonce_text(&self) -> Hex {
        Hex::of_bytes(self.cnonce.as_ref().map_or(&[], |bytes| &bytes[..]))
    }

    fn answer<'a>(
        &'a self,
        ha1: &'a str,
        cnonce: &'a str,
        method: &'a str,
        uri: &'a str,
        body: &'a [u8],
    ) -> Answer<'a> {
        Answer {
            algorithm: self.algorithm,
            sess: self.sess,
            ha1,
            nonce: &self.nonce,
            cnonce,
            nc: self.nc,
            qop: self.qop,
            method,
            uri,
            body,
        }
    }

    /// Not to be sent again unless asked for; the count of the nonce stays.
    fn withdraw(&mut self) {
        self.reusable = false;
        if let Some(resolved) = &mut self.provided {
            resolved.forget_provided();
        }
    }

    fn renew(&mut self, nonce: Box<str>) {
        self.nonce = nonce;
        self.cnonce = None;
        self.nc = 0;
        self.fresh = true;
    }
}

/// The parameters of `Authentication-Info`, RFC 7616 §3.5; the first of a name counts.
#[derive(Default)]
struct Info {
    nextnonce: Option<String>,
    rspauth: Option<String>,
    cnonce: Option<String>,
    qop: Option<Qop>,
}

impl Info {
    fn set(&mut self, name: &str, value: String) {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("qop") {
            self.qop = [Qop::Auth, Qop::AuthInt]
                .into_iter()
                .find(|qop| value.eq_ignore_ascii_case(qop.token()));
        } else if is("nextnonce") {
            self.nextnonce.get_or_insert(value);
        } else if is("rspauth") {
            self.rspauth.get_or_insert(value);
        } else if is("cnonce") {
            self.cnonce.get_or_insert(value);
        }
    }
}

fn is(realm: Option<&str>, other: &str) -> bool {
    realm.is_some_and(|realm| realm.eq_ignore_ascii_case(other))
}

#[cfg(test)]
mod tests;
