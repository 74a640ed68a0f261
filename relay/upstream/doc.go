// Package upstream owns the accounts with the smarthosts that mail is forwarded to.
//
// Job: keep, check and open accounts, and say what the replies of a server mean: a table of
// rows, of an admin, of the provider's preset, and of every upstream (presets.toml). It chooses
// no account (relay/route) and sends nothing (relay/delivery).
//
// Invariants: only what a reply says about a recipient or a message can fail mail, and text
// that a user has chosen reaches no row that compares text; a password is in the database only
// sealed, and bound to its account; an account has credentials only where TLS is verified; each
// change is in the audit, in its own transaction.
//
// Failure: refusals are of package refusal; an account whose password does not open spoils
// no other.
package upstream
