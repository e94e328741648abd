//! The one error type: what was attempted, what happened, what to do about it.
//!
//! Invariant: nothing that a user, a file or a driver can cause ends in a panic; it ends here.

use std::fmt;

pub type Result<T> = std::result::Result<T, Error>;

/// What kind of failure it is; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A wrong option or argument.
    Usage,
    /// A file or record that cannot be used.
    Data,
    /// No adapter, or one that does not have what is needed.
    Adapter,
    /// A size over a limit of the adapter.
    Limit,
    /// The device has no memory left.
    OutOfMemory,
    /// The device went away (driver reset, unplugged, removed).
    DeviceLost,
    /// A shader did not compile, or a launch was refused: a fault of ours or of the driver.
    Shader,
    /// Shapes or types that do not fit an operation.
    Shape,
    /// Values that are not finite, or a check of values that failed.
    Numeric,
    /// Whoever read the results went away (`denshi ... | head`): the end, and no failure.
    ReaderGone,
}

/// A failure with its context. `Display` prints one readable paragraph, hint last.
#[derive(Clone, Debug)]
pub struct Error {
    pub kind: Kind,
    /// Outermost first: "record the step", "record gemm_nt".
    pub attempted: Vec<String>,
    pub happened: String,
    pub hint: Option<String>,
}

impl Error {
    pub fn new(kind: Kind, attempted: impl Into<String>, happened: impl Into<String>) -> Self {
        Error { kind, attempted: vec![attempted.into()], happened: happened.into(), hint: None }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Exit code of the process: 2 usage, 3 data, 4 GPU, 5 numeric.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Usage => 2,
            Kind::Data => 3,
            Kind::Adapter | Kind::Limit | Kind::OutOfMemory | Kind::DeviceLost | Kind::Shader => 4,
            Kind::Shape | Kind::Numeric => 5,
            Kind::ReaderGone => 0,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not {}: {}", self.attempted.join(": "), self.happened)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// Adds what was being attempted, one level further out.
pub trait Context<T> {
    fn context(self, attempted: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context(self, attempted: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|mut e| {
            e.attempted.insert(0, attempted());
            e
        })
    }
}
