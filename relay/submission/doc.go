// Package submission is the way in: the listeners on 587 and 465, their TLS and
// limits, and the session of RFC 5321 as RFC 6409 narrows it.
//
// A session accepts mail only after AUTH, AUTH only under TLS, and answers 250 to
// the final dot only after Queue.Enqueue has returned a durable commit. A
// message that was answered 4yz or 5yz was never handed to the queue, or the queue has
// refused it for good.
//
// Invariants: one reply for each command, in order; every end of a DATA command
// empties MAIL and RCPT; octets that were received before STARTTLS, or after a
// refused DATA without waiting for its reply, are never run as commands; an I/O
// failure inside message data ends the connection; no commit is cancelled by a
// disconnect or a shutdown; memory and temporary files are bounded by Limits
// whatever clients do, and budgets are given back with the last reference to a
// body.
//
// A session ends when its credential is no longer valid, as soon as Recheck finds
// that: no later command is run, and no message is handed to the queue.
//
// A listener with Proxies serves load balancers only: each connection begins with a
// PROXY header, nothing else is accepted, and AUTH is refused where it names no client.
// Reconfigure changes limits for the sessions that begin after it.
//
// At a shutdown the listeners end first: every connection that was accepted is a
// session, and hears 421 in its place.
//
// It does not choose routes, deliver, write bounces or touch the database itself.
// Trouble of the verifier or the queue is answered 4yz; its cause goes to the log.
package submission
