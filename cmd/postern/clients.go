package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"postern/cmd/postern/handout"
	"postern/cmd/postern/screen"
)

// handout.For are the settings for a mail client of the user.
func (a *app) settingsOf(name string) (handout.Settings, error) {
	cfg, _, err := a.source.Load()
	if err != nil {
		return handout.Settings{}, err
	}
	return handout.For(&cfg, name)
}

func (a *app) printSettings(s handout.Settings) error {
	if len(s.Ports) == 0 {
		return nil
	}
	fmt.Fprintf(a.stdout, "\nfor the mail client:\n  server     %s\n", screen.Printable(s.Server))
	for _, p := range s.Ports {
		secured := "STARTTLS"
		if p.TLS == "implicit" {
			secured = "SSL/TLS"
		}
		fmt.Fprintf(a.stdout, "  port       %d with %s\n", p.Port, secured)
	}
	_, err := fmt.Fprintf(a.stdout, "  user name  %s\n", screen.Printable(s.UserName))
	return err
}

// profileFlags are the flags of p.
func profileFlags(cmd *cobra.Command, p *handout.Profiles) {
	f := cmd.Flags()
	f.StringVar(&p.Apple, "mobileconfig", "", "write a profile for Apple's clients to `FILE`")
	f.StringVar(&p.Mozilla, "autoconfig", "", "write a configuration for Mozilla's clients to `FILE`")
	f.StringVar(&p.IMAP, "imap", "", "`HOST[:PORT]` of the incoming server, for these files")
	f.BoolVar(&p.Force, "force", false, "overwrite existing files")
}

const profilesHelp = `--mobileconfig writes a configuration profile for iPhone and Mac, --autoconfig one in
Thunderbird's autoconfig format. Neither contains a password; existing files are not
overwritten without --force. Both describe an account that also fetches mail: name its
IMAP server with --imap (TLS on port 993). Without it Apple's file names this server in
its place, and Mozilla's has no incoming server.`

// putProfiles puts the files that were made into their places.
func (a *app) putProfiles(p *handout.Profiles, made handout.Pending) error {
	if err := made.Put(); err != nil {
		return err
	}
	for _, file := range made {
		fmt.Fprintf(a.stderr, "wrote %s\n", screen.Printable(file.Path))
	}
	if p.Apple != "" && p.IMAP == "" {
		fmt.Fprintln(a.stderr, "warning: Apple has no profile without an incoming server: the profile names this one, which has no mail to fetch; name yours with --imap")
	}
	if p.Mozilla != "" && p.IMAP == "" {
		fmt.Fprintln(a.stderr, "warning: Mozilla's file has no incoming server, and a client may refuse it; name yours with --imap")
	}
	return nil
}
