/** The nix-darwin module that makes a Mac a client of the fleet. */
import type { BuildMachine } from "./buildMachine.ts";
import { renderSystemModule, type SystemModuleOptions } from "./nixosModule.ts";

/**
 * The same options as NixOS has, under the same names: nix-darwin, `modules/nix/default.nix` and `modules/programs/ssh`.
 *
 * @throws InvalidValue if a builder or an option can't be used
 */
export function renderDarwinModule(machines: readonly BuildMachine[], options: SystemModuleOptions = {}): string {
  return renderSystemModule(
    [
      "This Mac as a client of a fleet of Nix builders. Written by nix-builder-fleet: change the stack, not this file.",
      "It can't do anything where nix-darwin doesn't manage Nix (nix.enable = false, as Determinate Nix wants it): use the plain files",
      "there (docs/clients.md), with their include line in /etc/nix/nix.custom.conf, as Determinate Nix writes over nix.conf.",
      "And a Host block for the same builder in /var/root/.ssh/config wins over this.",
    ],
    machines,
    options,
  );
}
