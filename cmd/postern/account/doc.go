// Package account shows users, their credentials and what they may send as, to people and to
// programs.
package account
