// Package quota is how much may be sent, and how much has been: a Limit with its text
// form, the windows that are charged in the commit of a message, what is used of a limit,
// near it and over it, and sessions at a time.
//
// It owns the tables usage_window and live_session. A message is charged by the function
// charge_usage within the queue's own statement, so that a charge is there if and only if
// its message is; this package has the arguments and the results of that statement's part.
//
// A domain's limit counts what all users whose names are in the domain send: it is for a
// customer. So its windows are rows that all these users' messages lock until their commit:
// on one node group commit hides that, and two nodes take turns, as with one busy user. A
// user without default limits is still under it, or could spend what the others were
// promised.
//
// The package auth keeps which limits are set, and policy turns refusals into replies.
package quota
