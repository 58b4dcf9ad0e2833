/** A folder of small durable files, in the browser's private file system or in memory. */

import { StateError } from "../errors.ts";

export interface Folder {
  /** What was written under that name, or null. */
  read(name: string): Promise<Uint8Array | null>;
  /** Put a file in place, whole or not at all; it is durable on return. */
  write(name: string, data: Uint8Array): Promise<void>;
  remove(name: string): Promise<void>;
  list(): Promise<string[]>;
}

/** For tests, and for pages that only try a job. */
export class MemoryFolder implements Folder {
  readonly files = new Map<string, Uint8Array>();

  async read(name: string): Promise<Uint8Array | null> {
    return this.files.get(name)?.slice() ?? null;
  }

  async write(name: string, data: Uint8Array): Promise<void> {
    this.files.set(name, data.slice());
  }

  async remove(name: string): Promise<void> {
    this.files.delete(name);
  }

  async list(): Promise<string[]> {
    return [...this.files.keys()];
  }
}

const TEMPORARY = ".new";

interface MovableFile extends FileSystemFileHandle {
  move(name: string): Promise<void>;
}

/** The origin's private file system. Files are written beside their place, flushed, and moved there. */
export class PrivateFolder implements Folder {
  private constructor(private readonly handle: FileSystemDirectoryHandle) {}

  /** Open the folder, and remove what an interrupted write left. Rejects with StateError where there is none. */
  static async open(name: string): Promise<PrivateFolder> {
    const found = await told(async () => {
      const root = await navigator.storage.getDirectory();
      return new PrivateFolder(await root.getDirectoryHandle(name, { create: true }));
    });
    const left = (await found.list()).filter((file) => file.endsWith(TEMPORARY));
    for (const file of left) await found.remove(file);
    return found;
  }

  async read(name: string): Promise<Uint8Array | null> {
    return told(async () => {
      try {
        const file = await (await this.handle.getFileHandle(name)).getFile();
        return new Uint8Array(await file.arrayBuffer());
      } catch (error) {
        if (error instanceof DOMException && error.name === "NotFoundError") return null;
        throw error;
      }
    });
  }

  async write(name: string, data: Uint8Array): Promise<void> {
    await told(async () => {
      const file = (await this.handle.getFileHandle(name + TEMPORARY, { create: true })) as MovableFile;
      const access = await file.createSyncAccessHandle();
      try {
        access.truncate(0);
        access.write(data as Uint8Array<ArrayBuffer>, { at: 0 });
        access.flush();
      } finally {
        access.close();
      }
      await file.move(name);
    });
  }

  async remove(name: string): Promise<void> {
    await told(async () => {
      try {
        await this.handle.removeEntry(name);
      } catch (error) {
        if (!(error instanceof DOMException && error.name === "NotFoundError")) throw error;
      }
    });
  }

  async list(): Promise<string[]> {
    return told(async () => {
      const names: string[] = [];
      for await (const name of this.handle.keys()) names.push(name);
      return names;
    });
  }
}

async function told<T>(act: () => Promise<T>): Promise<T> {
  try {
    return await act();
  } catch (error) {
    if (error instanceof DOMException && error.name === "QuotaExceededError") {
      throw new StateError("there is no room left for this page's files", "free some space on this device, then go on; nothing is lost");
    }
    if (error instanceof DOMException || error instanceof TypeError) {
      throw new StateError(
        "this browser lets the page keep no files",
        "leave private browsing, or use a newer browser: Chrome, Edge, Firefox or Safari of the last two years",
      );
    }
    throw error;
  }
}
