// Package recipients has the commands about recipients that get no mail: the suppression list, the
// patterns of users and credentials, and what a credential does with suppressed addresses.
package recipients
