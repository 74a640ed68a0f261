package account

import (
	"strings"

	"github.com/spf13/cobra"

	"postern/auth"
)

// DoubtHelp says what the policies do for mail that may have been delivered.
const DoubtHelp = `
  retry   send it again through the same upstream, after 15 minutes at the earliest
  hold    hold it until 'postern queue resolve'
  notice  do not send it again, and tell the sender that it may have arrived`

// DoubtFlag adds the flag with one of them.
func DoubtFlag(cmd *cobra.Command, policy *string) {
	list := auth.DoubtPolicies()
	cmd.Flags().StringVar(policy, "in-doubt", "", "`POLICY` for mail that may have been delivered: "+strings.Join(list, ", "))
	_ = cmd.RegisterFlagCompletionFunc("in-doubt", cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp))
}
