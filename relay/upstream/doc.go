// Package upstream owns the accounts with the smarthosts that mail is forwarded to.
//
// Job: keep, check and open accounts. It chooses none (relay/route) and sends nothing
// (relay/delivery).
//
// Invariants: a password is in the database only sealed, and bound to its account; an
// account has credentials only where TLS is verified; each change is in the audit, in its own
// transaction.
//
// Failure: refusals are of package refusal; an account whose password does not open spoils
// no other.
package upstream
