/** The types of launch.mjs, which has to be plain JavaScript: see there for the meaning. */
export declare const checkout: string;
export declare const oldestNode: string;
export declare const fetchedNode: {
  version: string;
  npm: { version: string; integrity: string };
  packages: Record<string, { name: string; integrity: string }>;
};
export declare class LaunchError extends Error {}
export declare function launch(script: string, args: string[]): Promise<void>;
export declare function keepPrivate(folder: string): void;
export declare function fail(error: unknown): void;
export declare function cacheDirectory(env?: NodeJS.ProcessEnv): string;
export declare function atLeast(version: string, minimum: string): boolean;
export declare function withLock<T>(path: string, work: () => T | Promise<T>, waiting?: () => void): Promise<T>;
export declare function dropLock(path: string, owner: string): void;
export declare function findNode(
  current?: { version: string; execPath: string },
  env?: NodeJS.ProcessEnv,
): Promise<string>;
export declare function packagesInstalled(directory: string): boolean;
export declare function fingerprint(...contents: string[]): string;
