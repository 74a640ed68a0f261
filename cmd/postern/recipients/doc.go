// Package recipients has the commands about recipients that get no mail: the suppression list,
// and the patterns of users and credentials.
package recipients
