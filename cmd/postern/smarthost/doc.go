// Package smarthost has the flags by which commands set an upstream's account, and shows an
// upstream with its budget and the table of its replies.
package smarthost
