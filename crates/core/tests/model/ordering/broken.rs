//! What can be got wrong about order by key.

/// What is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Broken {
    Nothing,
    /// Every message that failed leaves its place, also one that follows another that stays.
    MovesAll,
    /// Two messages of a key are sent at a time.
    TwoInFlight,
    /// What follows one that failed is sent all the same.
    SendsOn,
    /// What follows one that is not sent, because its exchange or route is suspended, is sent all the same.
    SendsPastWithheld,
    /// The rows of a lane are those that a snapshot from before its lock showed.
    RowsBeforeLock,
    /// A key that was blocked before the lane was locked counts as blocked.
    ParksByOldBlocks,
    /// Whether a key may be resumed is read before its lane is locked.
    ResumesBlindly,
    /// Rows that others have locked are skipped.
    SkipsHeld,
    /// Whoever finds a key without a head unblocks it, parked messages or not.
    UnblocksTooSoon,
    /// Who deletes the head unblocks a key with nothing parked, without the lock of its lane.
    UnblocksWithoutLock,
    /// A dead letter frees its key though it should block it.
    DeadLettersFree,
    /// A key whose head is gone forgets that another dead letter blocks it.
    ForgetsDeadLetters,
    /// What follows the head of a key is looked up by a snapshot from before its row in `blocked_keys` is locked.
    NextHeadBeforeLock,
    /// Parking leaves the place from which a key is resumed as it is.
    ParksBelowResume,
    /// A key is resumed behind all that was claimed, whatever came of it.
    ResumesBehindBatch,
    /// Superseded messages leave with the batch, whatever came of the newest.
    SupersededLeave,
    /// The newest of a run moves when it fails.
    NewestMoves,
    /// A run whose newest failed is made again.
    ForgetsRuns,
    /// What of a key is not committed yet is not waited for.
    NoHorizon,
    /// The horizon is looked at after the rows were read.
    HorizonTooLate,
}
