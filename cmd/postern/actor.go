package main

import (
	"os"
	"os/user"
	"strconv"
	"strings"
)

// maxActor bounds a user's name in octets. Linux has names of 32; directories have longer
// ones, and what is not a name may be as long as an environment.
const maxActor = 256

// actor is who acts, for the audit: the operating system's user, and behind sudo the
// one who called it.
func (a *app) actor() string {
	who := "uid " + strconv.Itoa(os.Getuid())
	if name := a.source.Env["SUDO_USER"]; name != "" && os.Geteuid() == 0 {
		who = name
	} else if u, err := user.Current(); err == nil && u.Username != "" {
		who = u.Username
	}
	if len(who) > maxActor {
		who = who[:maxActor] + "…"
	}
	return strings.ToValidUTF8(who, "")
}

// maxReason bounds what an admin says about a deed, in octets.
const maxReason = 1000

func checkReason(reason string) error {
	if len(reason) > maxReason {
		return usagef("--reason is longer than %d octets", maxReason)
	}
	return nil
}
