// Package bounce tells senders about their mail: RFC 3464 notices of
// failure, of doubt, of delay, and of hand-over to a server that cannot report success.
//
// It turns the queue's record into a message and gives that message back to
// the queue, committed and marked as told in one transaction, so a crash can
// neither lose a notice nor send a second one. Nobody is told about mail from the null
// sender, and a notice itself has the null sender and NOTIFY=NEVER.
//
// Trouble with the queue delays a notice and never drops it. A notice that cannot be
// delivered in the end is logged and counted, since nobody else would hear of it.
package bounce
