/** What `npx fleet verify-gone` says of things that are left, whatever the cloud. */

/** What to do about them. */
export const remainsAdvice =
  "`npm run pulumi -- destroy` removes what its state knows of, and what a killed deployment left; what stays then has to be " +
  "deleted in the console, unless its stack id is that of another checkout's fleet of the same name.";
