//! What is wrong with a file, or only doubtful, in a line that a person understands.

use crate::{BuildError, ConfigWarning, CredentialsError, MechanismError, TransportConfigError};
use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// How much a [`Diagnostic`] costs
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "lowercase")
)]
pub enum Severity {
    /// What it is about was loaded, and may not be what was meant.
    Warning,
    /// What it is about was refused: a line, an object, all objects of a type, or the file.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One finding in a `pjsip.conf`
///
/// `Display` is one line. All that is wrong with a section is told, not just the first thing; of one line, at least
/// the first.
/// What a finding does not have:
///
/// * a section, where the line stands before the first one;
/// * an option, where it is about a whole line (no `=`, no name, a comment, too long) or a whole section (its header,
///   its name, no `type`, a second one of its name, what a reload keeps);
/// * a value, where the option is not there or is for a secret, and where nobody knows what it is for, as it may be a
///   secret then: an unknown option or directive, `#exec`, a line that is cut by a comment, is no UTF-8, or stands
///   before the first section.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Diagnostic {
    /// What it costs
    pub severity: Severity,
    /// The file, as it was named
    pub file: Arc<str>,
    /// The line, counted from 1; 0 where it is about the whole file
    pub line: u32,
    /// The section it is about, which for an inherited line is not the one that the line is in; of what is no option,
    /// the section in which it stands
    pub section: Option<Arc<str>>,
    /// The option, as it was written, or the one that is missing; a directive with its `#`
    pub option: Option<Arc<str>>,
    /// Its value, shortened; passwords in URIs are masked
    pub value: Option<Arc<str>>,
    /// The rule that is broken
    pub rule: Rule,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.escape_debug())?;
        if self.line > 0 {
            write!(f, "{}:", self.line)?;
        }
        write!(f, " {}:", self.severity)?;
        if let Some(section) = &self.section {
            write!(f, " [{}]", section.escape_debug())?;
        }
        if let Some(option) = &self.option {
            write!(f, " {}", option.escape_debug())?;
            if let Some(value) = &self.value {
                write!(f, " = {}", value.escape_debug())?;
            }
            f.write_str(":")?;
        }
        write!(f, " {}", self.rule)
    }
}

/// The rule that a line of a `pjsip.conf` breaks
///
/// The first part is the grammar of Asterisk's configuration files, the second what its objects refuse or swallow.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Rule {
    /// A file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(Arc<str>),
    /// The file of an `#include` is not there, or its pattern fits none.
    #[error("no file {0:?} to include: the whole configuration is refused")]
    IncludeMissing(Arc<str>),
    /// A file includes itself.
    #[error("{0:?} includes itself: not included again")]
    IncludeLoop(Arc<str>),
    /// Includes are nested deeper than Asterisk follows.
    #[error("includes are nested more than {0} deep: the whole configuration is refused")]
    IncludeDepth(usize),
    /// More than can be a configuration: files, or lines with all that is inherited.
    #[error("more than {most} {what}: the whole configuration is refused")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        most: usize,
    },
    /// `#exec` runs a program, which is never done here.
    #[error("#exec is not carried out")]
    Exec,
    /// A directive that is not `#include`, `#tryinclude` or `#exec`.
    #[error("unknown directive, ignored")]
    UnknownDirective,
    /// A directive without the file that it needs.
    #[error("the directive needs a file, ignored")]
    DirectiveArgument,
    /// A line of more bytes than Asterisk reads.
    #[error("the line is longer than 8191 bytes and is skipped")]
    LineTooLong,
    /// A line that is no UTF-8.
    #[error("the line is not UTF-8")]
    NotUtf8,
    /// A `;--` without its `--;`.
    #[error("the comment that starts here with ;-- has no --; and hides the rest of the file")]
    UnterminatedComment,
    /// A `;` in the middle of a word: what follows it is a comment.
    #[error("what follows the ; is a comment: where it belongs to the value, write \\;")]
    CutByComment,
    /// A `--;` outside a block comment.
    #[error(
        "--; ends no comment; a plain comment starts here, in Asterisk the rest of the file is lost"
    )]
    StrayCommentEnd,
    /// Block comments nested deeper than Asterisk reads.
    #[error("comments are nested more than 128 deep: the whole configuration is refused")]
    CommentDepth,
    /// A `[` without its `]`.
    #[error("no closing ]: the whole configuration is refused")]
    NoClosingBracket,
    /// A `(` after a section name without its `)`.
    #[error("no closing ): the whole configuration is refused")]
    NoClosingParenthesis,
    /// `[name] (template)`.
    #[error(
        "a space before ( makes Asterisk ignore what is in the parentheses: nothing is inherited"
    )]
    SpaceBeforeOptions,
    /// Something after `[name]` or `[name](…)`.
    #[error("text after the section's header is ignored")]
    TextAfterHeader,
    /// `[name]()`, `[name](a,)`.
    #[error("an empty name in the parentheses is ignored")]
    EmptyParent,
    /// A section or template to inherit from that is not there, or only later.
    #[error(
        "no section {0:?} above to inherit from (spaces count): the whole configuration is refused"
    )]
    UnknownParent(Arc<str>),
    /// `(+)` where there is no such section.
    #[error("no section of this name above to add to: the whole configuration is refused")]
    NothingToAddTo,
    /// A `(+filter)` with more of a regular expression than is understood here.
    #[error(
        "{0:?} is no filter of the form name=value, with & between several: the whole configuration is refused"
    )]
    Filter(Arc<str>),
    /// An option before the first section.
    #[error("an option before the first section: the whole configuration is refused")]
    NoSection,
    /// A line that is neither section nor option.
    #[error("no = in the line, ignored")]
    NoEqualSign,
    /// `= value`.
    #[error("no name before the =, ignored")]
    NoName,
    /// A `\` at the start of a line, with nothing after it.
    #[error("nothing to escape after the \\: the whole configuration is refused")]
    Escape,

    /// A section without `type`.
    #[error("the section has no type, ignored")]
    NoType,
    /// A type that Asterisk does not know.
    #[error("unknown type {0:?}, the section is ignored; types are written in lower case")]
    UnknownType(Arc<str>),
    /// Several `type` lines that differ.
    #[error("the type is {used:?}, the first that the section has, not {ignored:?}")]
    SeveralTypes {
        /// The one that counts.
        used: Arc<str>,
        /// The other one.
        ignored: Arc<str>,
    },
    /// Two sections of one name and type.
    #[error("a second object of type {0}: no object of this type is loaded")]
    Duplicate(&'static str),
    /// A second section of a type of which there is one.
    #[error("a second section of type {0}, ignored")]
    SecondOf(&'static str),
    /// An option that the type does not have; the object is refused.
    #[error("type {0} has no such option")]
    UnknownOption(&'static str),
    /// An option that is unknown here; the object is loaded without it.
    #[error("unknown option of type {0}, ignored")]
    IgnoredOption(&'static str),
    /// Not a number as C's `strtoul` reads it.
    #[error("not a whole number from 0 to 4294967295")]
    NotNumber,
    /// Neither yes nor no, which Asterisk takes for no.
    #[error("neither yes nor no: taken for no, as Asterisk does")]
    NotBoolean,
    /// An option without which there is no object.
    #[error("{0} is missing or empty")]
    Missing(&'static str),
    /// A value that is none of those that the option has.
    #[error("not one of {0}")]
    NotOneOf(&'static str),
    /// A value that has been moved to the nearest that is possible.
    #[error("{option} is out of its limits, {milliseconds} ms are used")]
    Limited {
        /// The timer.
        option: &'static str,
        /// What is used.
        milliseconds: u32,
    },
    /// What [`RegistrationBuilder::build`](crate::RegistrationBuilder::build) refuses.
    #[error("{}", chain(.0))]
    Registration(BuildError),
    /// What [`Registration::warnings`](crate::Registration::warnings) doubts.
    #[error("{0}")]
    Doubtful(ConfigWarning),
    /// The URI parameter `transport` has a value for which there is no transport.
    #[error("no transport for ;transport={0}")]
    UriTransport(Arc<str>),
    /// No transport of the file can carry the registration.
    #[error(
        "no transport of the file has protocol={0} and an address family that reaches the server"
    )]
    NoTransport(&'static str),
    /// The option `transport` names none of the file.
    #[error(
        "no usable transport of this name in the file: any of the right type is used, as in Asterisk"
    )]
    UnknownTransport,
    /// The named transport is not of the type that the URI asks for.
    #[error(
        "the transport has protocol={named}, server_uri asks for {uri}: every attempt may fail"
    )]
    TransportMismatch {
        /// The protocol of the transport.
        named: &'static str,
        /// The protocol in the URI.
        uri: &'static str,
    },
    /// A security mechanism that is left out, as Asterisk does.
    #[error("left out: {0}")]
    Mechanism(MechanismError),
    /// `security_mechanisms` without `security_negotiation`, or the other way round.
    #[error("{0}")]
    Negotiation(&'static str),
    /// An id of `outbound_auth` that is no auth section of the file.
    #[error("no usable auth section {0:?} in the file")]
    UnknownAuth(Arc<str>),
    /// An endpoint that is no section of the file, which has others.
    #[error("no endpoint section of this name in the file")]
    UnknownEndpoint,
    /// Credentials that cannot be used.
    #[error("{0}")]
    Credentials(CredentialsError),
    /// A stored hash without the realm that it was made for.
    #[error("a stored hash is good for one realm only: name it with the option realm")]
    HashWithoutRealm,
    /// An algorithm for which there is neither password nor hash.
    #[error(
        "neither password nor hash for {algorithm}, which is the default of {option}: set that option"
    )]
    DefaultAlgorithm {
        /// The list that the algorithm is in.
        option: &'static str,
        /// The algorithm.
        algorithm: crate::Algorithm,
    },
    /// OAuth tokens.
    #[error(
        "google_oauth is not supported: fetch the secret in the program, with Credentials::provided and a \
         CredentialProvider"
    )]
    GoogleOauth,
    /// A protocol that cannot carry a registration here.
    #[error("a transport with protocol={0} carries no registration here, ignored")]
    UnsupportedProtocol(Arc<str>),
    /// A transport that takes the connections of browsers, and opens none.
    #[error(
        "a transport with protocol={0} takes connections and opens none, so no registration goes out by it: ignored"
    )]
    OnlyListens(Arc<str>),
    /// `bind` is no address.
    #[error("not an address, as 0.0.0.0:5060 or [::]:5061; names are not looked up")]
    Bind,
    /// What of TLS is weaker, or stricter, than it reads.
    #[error("{0}")]
    Tls(&'static str),
    /// What [`TransportConfig`](crate::TransportConfig) refuses.
    #[error("{0}")]
    Transport(TransportConfigError),

    /// A changed transport that a reload may not change.
    #[error(
        "a reload changes protocol, bind, tos, cos and TLS only with allow_reload=yes: the running version of them is kept"
    )]
    NotReloadable,
    /// A refused object of which a running version goes on.
    #[error("the running version of this {0} is kept")]
    Kept(&'static str),
}

/// An error with its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
