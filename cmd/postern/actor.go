package main

import (
	"os"
	"os/user"
	"strconv"
)

// actor is who acts, for the audit: the operating system's user, and behind sudo the
// one who called it.
func (a *app) actor() string {
	if who := a.env["SUDO_USER"]; who != "" && os.Geteuid() == 0 {
		return who
	}
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	return "uid " + strconv.Itoa(os.Getuid())
}
